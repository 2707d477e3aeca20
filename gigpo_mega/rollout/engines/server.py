"""Launches an SGLang server, waits until it is healthy, and leaves nothing behind, however the run ends."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from uuid import uuid4

from gigpo_mega.config import EngineConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.base import EngineLost
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.engines.http import open_direct
from gigpo_mega.stack import decide


class Launched(ABC):
    """Something that is launched, waited for, and closed however that ends: a context manager."""

    def __enter__(self) -> Self:
        try:
            self.launch()
            self.wait_until_healthy()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def launch(self) -> None:
        """Start without waiting, to overlap the start-up with other work; harmless when repeated."""

    @abstractmethod
    def wait_until_healthy(self) -> None:
        """Wait until it can be used; raises UserError or EngineLost if it never can."""

    @abstractmethod
    def close(self) -> None:
        """End it, and wait until it is gone; harmless when repeated."""


class SGLangServer(Launched):
    """A server for the Hugging Face directory `model`; a context manager.

    Launches one as `launch` says (null: float32 on the stack that this machine has), the `number`-th of this
    node, at `host`; or only checks the server at `url` (null: the `number`-th of `engine.url`, if it names
    any). The weights it starts with are tagged version 0; if `model` holds none, they are random and tagged
    "none" until weights are pushed. Raises UserError, one line, if the server does not become healthy.
    """

    def __init__(
        self,
        model: Path,
        config: EngineConfig,
        log: Path,
        launch: Launch | None = None,
        *,
        number: int = 0,
        host: str = "127.0.0.1",
        url: str | None = None,
    ) -> None:
        self._model = model
        self._config = config
        self._log = log
        self._number = number
        url = config.urls[number] if config.urls else url
        self._attached = url is not None
        self._launch = launch or Launch(decide(engine=not self._attached))
        self._timeout = config.startup_timeout or self._launch.startup_timeout
        self._name = f"gigpo-mega-{uuid4().hex}"  # by which the server that answers is known to be ours
        self._process: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None  # held for the launched server, see `hold_port`
        if url is None:
            self._port = hold_port(host, config.port + number if config.port else 0)
            url = f"http://{host}:{self._port.getsockname()[1]}"
        self.url = url

    def wait_until_healthy(self) -> None:
        """Wait until it can be used; raises as `ready`."""
        wait([self])

    def placed(self) -> str:
        """Where it listens."""
        return self.url

    def relaunch(self) -> None:
        """Kill the server and start it again at its port, which nobody else can take in between."""
        self._end()
        self.launch()

    def close(self) -> None:
        """Kill the server and all its processes, and wait until they are gone; harmless when repeated."""
        self._end()
        if self._port is not None:
            self._port.close()
            self._port = None

    def check(self) -> None:
        """Raise EngineLost if the launched server has died; a call costs microseconds."""
        if self._process is not None and (status := self._process.poll()) is not None:
            error = self.last_error()
            raise EngineLost(f"the SGLang server ended with status {status}: {error} (log: {self._log})")

    def launch(self) -> None:
        """Start the server without waiting for it, to overlap its start-up with other work."""
        if self._attached or self._process is not None:
            return
        if not (self._model / "config.json").is_file():
            raise UserError(f"model.path: {self._model} has no config.json; give a Hugging Face directory")
        if self._port is None:  # it was closed
            host, _, port = self.url.removeprefix("http://").rpartition(":")
            self._port = hold_port(host, int(port))
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.exists():  # why the server before ended is worth knowing
            self._log.replace(self._log.with_name(f"{self._log.name}.1"))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gigpo_mega.rollout.engines.supervisor", *self._command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._launch.environment(self._config),
                start_new_session=True,  # Ctrl-C in the terminal must reach us, not the server
            )

    def _end(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()  # the supervisor kills the group when the pipe closes
            self._process.wait()
            self._process = None

    def _command(self) -> list[str]:
        return self._launch.command(self._model, self._config, self.url, self._name, self._number)

    def ready(self, seconds: float) -> bool:
        """Whether the server, launched `seconds` ago, can be used.

        Raises EngineLost if it has ended or takes too long, UserError if another server answers.
        """
        if not _healthy(self.url):
            self.check()
            if seconds > self._timeout:
                raise EngineLost(self._timed_out())
            return False
        if self._process is not None:
            self._check_ours()
            _post(f"{self.url}/freeze_gc")  # without a warm-up, the server's own call comes too early
        return True

    def last_error(self) -> str:
        """The newest error in a launched server's log, or its newest line."""
        lines = self._tail()
        errors = [line for line in lines if re.search(r"^\w*(\.\w+)*(Error|Exception)\b|\berror:", line)]
        return (errors or lines)[-1][:300]

    def _check_ours(self) -> None:
        """Raise UserError if another server answers at the port: our weights would overwrite its own."""
        try:
            with open_direct(f"{self.url}/server_info", timeout=30) as answer:
                name = json.loads(answer.read()).get("served_model_name")
        except (OSError, ValueError) as error:
            name = repr(error)
        if name != self._name:
            raise UserError(
                f"engine.port {self._config.port}: another server answers at {self.url} (it serves {name}); "
                "choose another port, or null for a free one"
            )

    def _timed_out(self) -> str:
        limit = f"within engine.startup_timeout = {self._timeout:g} s"
        if self._process is None:
            return f"engine.url: the server at {self.url} was not healthy {limit}; start it or fix the URL"
        return (
            f"the SGLang server was not healthy {limit}: {self.last_error()} (log: {self._log}); "
            "raise the limit or fix what the log says"
        )

    def _tail(self) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - 16384))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()] or ["its log is empty"]


class Startable(Protocol):
    """A server that was launched."""

    url: str

    def ready(self, seconds: float) -> bool:
        """As `SGLangServer.ready`."""
        ...


def wait(
    servers: Sequence[Startable], on_progress: Callable[[float], None] = lambda _seconds: None
) -> None:
    """Wait until all `servers` can be used; raises as `SGLangServer.ready`, EngineLost with the URL.

    `on_progress(seconds so far)` is called about four times a second.
    """
    start = time.monotonic()
    pending = list(servers)
    while pending := [server for server in pending if not _ready(server, time.monotonic() - start)]:
        on_progress(time.monotonic() - start)
        time.sleep(0.25)


def _ready(server: Startable, seconds: float) -> bool:
    try:
        return server.ready(seconds)
    except EngineLost as error:
        error.url = server.url
        raise


def hold_port(host: str, port: int = 0) -> socket.socket:
    """A socket with TCP port `port` of the interface at `host` (0: a free one), for a server to be launched.

    While it is open the system gives the port to no other program that asks for a free one, as gloo, Ray and
    other servers do in the seconds until ours listens; ours, which asks for this number, can listen there.
    Raises UserError if a program listens there already, or the address is not this machine's.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        held.close()
        if not port:
            raise UserError(f"no port for an SGLang server at {host}: {error.strerror}") from None
        raise UserError(
            f"engine.port {port}: {error.strerror} at {host}; choose another port, or null for a free one"
        ) from None
    return held


def _post(url: str) -> None:
    with (
        contextlib.suppress(urllib.error.URLError, OSError),
        open_direct(urllib.request.Request(url, method="POST"), timeout=30),
    ):
        pass


def _healthy(url: str) -> bool:
    try:
        with open_direct(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
