"""Environments in worker processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from envs.registry import address
from gigpo_mega.launch import child_environment, import_path
from gigpo_mega.rollout.pools.batched import BatchedPool, Worker
from gigpo_mega.rollout.pools.host import Request
from gigpo_mega.rollout.pools.worker import LENGTH, Mark


@dataclass(slots=True, kw_only=True)
class ProcessWorker(Worker):
    """A worker process, and our end of its socket."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    mark: Mark
    over: bool = False  # and what its environments have started, too
    writer: asyncio.StreamWriter | None = None
    reading: asyncio.Task[None] | None = None

    def obituary(self) -> str:
        """How it ended."""
        died = f"died with status {self.process.returncode}; see its message above"
        return f"environment worker {self.process.pid} {self.killed or died}"

    def end(self, patience: float = 0.0) -> None:
        """Give it `patience` seconds to end, then kill it; in any case what its environments have started.

        Once, as its number may be another's later.
        """
        if self.over:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.over = True


class ProcessPool(BatchedPool[ProcessWorker]):
    """`workers` processes holding environments of kind `name`, as `envs.registry.lookup` takes it here.

    `options` are keyword arguments of an environment, and must be JSON.
    """

    def __init__(
        self, name: str, options: dict[str, Any], workers: int, step_timeout: float | None = None
    ) -> None:
        self._arguments = [address(name), json.dumps(options)]
        super().__init__(workers, step_timeout)

    def close(self) -> None:
        """End the worker processes; harmless when repeated."""
        for worker in self._workers:
            _leave(worker, patience=2)

    def _start(self) -> ProcessWorker:
        ours, theirs = socket.socketpair()
        descriptor = os.memfd_create("environment worker")
        try:
            os.ftruncate(descriptor, Mark.SIZE)
            with theirs:
                inherited = [theirs.fileno(), descriptor]
                module = [sys.executable, "-P", "-m", "gigpo_mega.rollout.pools.worker"]
                process = subprocess.Popen(
                    [*module, *map(str, inherited), *self._arguments],
                    stdin=subprocess.DEVNULL,
                    pass_fds=inherited,
                    env=child_environment(PYTHONPATH=import_path()),
                    process_group=0,  # what its environments start ends with it
                )
            return ProcessWorker(process=process, connection=ours, mark=Mark(descriptor))
        finally:
            os.close(descriptor)

    async def _attach(self, worker: ProcessWorker) -> None:
        duplicate = worker.connection.dup()
        reader, worker.writer = await asyncio.open_connection(sock=duplicate, limit=1 << 20)
        worker.reading = asyncio.create_task(self._read(worker, reader))

    async def _detach(self, worker: ProcessWorker) -> None:
        if worker.reading is not None:
            worker.reading.cancel()
            await asyncio.gather(worker.reading, return_exceptions=True)
        if worker.writer is not None:
            worker.writer.close()
            with contextlib.suppress(OSError):
                await worker.writer.wait_closed()
        worker.writer = worker.reading = None

    def _serves(self, worker: ProcessWorker) -> bool:
        return worker.reading is not None and not worker.reading.done()

    def _ended(self, worker: ProcessWorker) -> bool:
        return worker.process.poll() is not None if worker.reading is None else worker.reading.done()

    def _send(self, worker: ProcessWorker, batch: list[Request]) -> None:
        if worker.writer is not None:
            body = pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL)
            worker.writer.write(LENGTH.pack(len(body)) + body)

    async def _at_work(self, worker: ProcessWorker) -> tuple[int | None, float]:
        return worker.mark.read()

    def _kill(self, worker: ProcessWorker) -> None:
        worker.end()

    def _stop(self, worker: ProcessWorker) -> None:
        _leave(worker, patience=0)

    async def _read(self, worker: ProcessWorker, reader: asyncio.StreamReader) -> None:
        """Deliver replies until the worker ends, then tell all whose environments it held."""
        watch = asyncio.create_task(_hang_up(worker))
        try:
            while True:
                (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                self._deliver(worker, pickle.loads(await reader.readexactly(size)))  # from our own child
        except (asyncio.IncompleteReadError, ConnectionError):
            await _ending(worker.process, seconds=5)  # its status is part of its obituary
        finally:
            watch.cancel()
        worker.end()
        self._gone(worker, worker.obituary(), worker.mark.read()[0])


async def _ending(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until it has ended, `seconds` at most; the loop serves others meanwhile."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


async def _hang_up(worker: ProcessWorker) -> None:
    """Close the connection to a worker that has ended: what it has forked may hold the other end open."""
    while worker.process.poll() is None:
        await asyncio.sleep(0.25)
    await asyncio.sleep(0.25)  # for what it has said before
    if worker.writer is not None:
        worker.writer.transport.abort()


def _leave(worker: ProcessWorker, patience: float) -> None:
    """Let a worker leave, and kill it after `patience` seconds; nothing that it started stays."""
    with contextlib.suppress(OSError):
        worker.connection.shutdown(socket.SHUT_RDWR)  # the worker reads the end and leaves
    worker.connection.close()
    worker.end(patience)
