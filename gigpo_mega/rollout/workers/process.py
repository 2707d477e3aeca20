"""Rollout workers as processes beside the leader."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress

from gigpo_mega.errors import UserError
from gigpo_mega.launch import child_environment, import_path
from gigpo_mega.rollout.workers.wire import Setup

LEAVING_SECONDS = 5.0  # for a worker to end its environments


class ProcessWorker:
    """A process that serves `setup`; it starts at once."""

    def __init__(self, setup: Setup) -> None:
        self.secret = setup.secret
        self._setup = setup
        self._port: int | None = None
        self._told = -1  # where it writes its port
        self._process = self._start()

    def address(self) -> tuple[str, int]:
        """Where it listens, when it does; raises UserError if it ends before."""
        if self._port is None:
            with open(self._told, "rb") as told:
                said = told.read()
            if not said:
                raise UserError("a rollout worker cannot be started; see its message above")
            self._port = int(said)
        return self._setup.host, self._port

    def restart(self) -> None:
        """Put another process in its place."""
        self.close(patience=0.0)
        self._port, self._process = None, self._start()

    def close(self, patience: float = LEAVING_SECONDS) -> None:
        """Let it leave, and kill it after `patience` seconds; harmless when repeated."""
        try:
            self._process.communicate(timeout=patience)  # closes its standard input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        self._told, theirs = os.pipe()  # its standard output is its environments' to write to
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gigpo_mega.rollout.workers.server", str(theirs)],
                stdin=subprocess.PIPE,
                pass_fds=[theirs],
                env=child_environment(PYTHONPATH=import_path()),
            )
        finally:
            os.close(theirs)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # `address` will say that it has ended
            process.stdin.write(pickle.dumps(self._setup))
            process.stdin.flush()
        return process
