"""Environments in worker processes, stepped from asyncio: what one turn of the loop asks is one message."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from envs.base import EnvironmentError, Observation, Task, Transition, address
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.worker import LENGTH, Reply, Request


class PoolError(RuntimeError):
    """An environment raised something unforeseen, or the pool is used wrongly: a bug, with its traceback."""


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: socket.socket
    outbox: list[Request] = field(default_factory=list)
    waiting: dict[int, asyncio.Future[Any]] = field(default_factory=dict)  # by slot
    writer: asyncio.StreamWriter | None = None
    reading: asyncio.Task[None] | None = None


class EnvironmentPool:
    """`workers` processes holding environments of kind `name`; slot i lives in worker i modulo `workers`.

    Slots are made when first used and can be reused. Enter the pool (`async with pool`) in each event loop
    that uses it; `close()` ends the processes. A slot serves one call at a time. `name` is what
    `envs.base.lookup` knows here; `options` must be JSON.
    """

    def __init__(self, name: str, options: dict[str, Any], workers: int) -> None:
        self._arguments = [address(name), json.dumps(options)]
        self._workers = [_start(self._arguments) for _ in range(workers)]

    async def reset(self, slot: int, task: Task) -> Observation:
        """Start `task`; raises EnvironmentError for an unusable task, UserError for a dead worker."""
        return await self._call(slot, "reset", task)

    async def step(self, slot: int, action: str) -> Transition:
        """Take one action; raises as `reset` does."""
        return await self._call(slot, "step", action)

    async def __aenter__(self) -> Self:
        for index, worker in enumerate(self._workers):
            if worker.process.poll() is not None:
                self._workers[index] = worker = _start(self._arguments)
            reader, worker.writer = await asyncio.open_connection(sock=worker.connection.dup(), limit=1 << 20)
            worker.reading = asyncio.create_task(_read(worker, reader))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            if worker.waiting:  # abandoned calls: late answers would be taken for those of the next ones
                worker.waiting.clear()
                _stop(worker, patience=0)
            if worker.reading is not None:
                worker.reading.cancel()
                await asyncio.gather(worker.reading, return_exceptions=True)
            if worker.writer is not None:
                worker.writer.close()
                with contextlib.suppress(OSError):
                    await worker.writer.wait_closed()
            worker.writer = worker.reading = None

    def close(self) -> None:
        """End the worker processes; harmless when repeated."""
        for worker in self._workers:
            _stop(worker, patience=2)

    async def _call(self, slot: int, method: str, argument: Any) -> Any:
        worker = self._workers[slot % len(self._workers)]
        if worker.writer is None:
            raise PoolError("the environment pool is used outside `async with pool`")
        if worker.reading is None or worker.reading.done():
            raise UserError(_obituary(worker))
        loop = asyncio.get_running_loop()
        worker.waiting[slot] = future = loop.create_future()
        worker.outbox.append((slot, method, argument))
        if len(worker.outbox) == 1:
            loop.call_soon(_flush, worker)
        return await future


def _start(arguments: list[str]) -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "gigpo_mega.rollout.worker", str(theirs.fileno()), *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=_importing_as_we_do()
        )
    return _Worker(process, ours)


def _importing_as_we_do() -> dict[str, str]:
    paths = [*sys.path, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _stop(worker: _Worker, patience: float) -> None:
    with contextlib.suppress(OSError):
        worker.connection.shutdown(socket.SHUT_RDWR)  # the worker reads the end and leaves
    worker.connection.close()
    try:
        worker.process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()


def _flush(worker: _Worker) -> None:
    batch, worker.outbox = worker.outbox, []
    if worker.writer is not None:
        body = pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL)
        worker.writer.write(LENGTH.pack(len(body)) + body)


async def _read(worker: _Worker, reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            for reply in pickle.loads(await reader.readexactly(size)):  # from our own child process
                _resolve(worker, reply)
    waiting, worker.waiting = worker.waiting, {}
    for future in waiting.values():
        if not future.done():
            future.set_exception(UserError(_obituary(worker)))


def _resolve(worker: _Worker, reply: Reply) -> None:
    slot, good, result = reply
    future = worker.waiting.pop(slot)
    if future.done():  # the caller was cancelled
        return
    if good:
        future.set_result(result)
    elif result[0] == "task":
        future.set_exception(EnvironmentError(result[1]))
    else:
        future.set_exception(PoolError(f"an environment failed: {result[1]}"))


def _obituary(worker: _Worker) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(timeout=1)
    status = worker.process.returncode
    return f"environment worker {worker.process.pid} died with status {status}; its own message stands above"
