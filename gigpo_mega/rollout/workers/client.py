"""The leader's side of rollout workers: hands out groups, and gives those of a worker that dies to others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from gigpo_mega.rollout.engines.fleet import Served
from gigpo_mega.rollout.group_player import Attempt, Counts, Terms
from gigpo_mega.rollout.pools.base import EnvironmentLost
from gigpo_mega.rollout.workers import wire
from gigpo_mega.telemetry.timeline import Span
from gigpo_mega.types import Trajectory

SILENCE_SECONDS = 60.0  # after which a worker, which reports four times a second, counts as lost


class Worker(Protocol):
    """A process with a `WorkerServer`."""

    secret: bytes

    def address(self) -> tuple[str, int]:
        """Where it listens, when it does; raises UserError if it cannot be started."""
        ...

    def restart(self) -> None:
        """Put another process in its place; harmless to one that has ended."""
        ...

    def close(self) -> None:
        """End it; harmless when repeated."""
        ...


class WorkerLost(EnvironmentLost):
    """A rollout worker has ended, with all that it played."""

    def __init__(self) -> None:
        super().__init__("a rollout worker has ended; see its message above", at_fault=True)

    def __reduce__(self) -> tuple[type[WorkerLost], tuple[Any, ...]]:
        return WorkerLost, ()


@dataclass(slots=True)
class _Connection:
    """What a worker has said in the collection that is open."""

    writer: asyncio.StreamWriter
    on_progress: Callable[[wire.Progress], None]
    progress: wire.Progress | None = None  # the latest
    spans: list[Span] = field(default_factory=list[Span])  # that nobody has asked for yet
    waiting: dict[int, asyncio.Future[wire.Played]] = field(default_factory=dict)  # by number of the group
    open: bool = True
    error: Exception = field(default_factory=WorkerLost)  # why it is open no longer

    async def play(self, attempt: Attempt) -> wire.Played:
        """Have the worker play a group; raises WorkerLost, and whatever ends the collection."""
        if not self.open:
            raise self.error
        self.waiting[attempt.number] = played = asyncio.get_running_loop().create_future()
        wire.send(self.writer, wire.Play(attempt.number, attempt.task))
        attempt.on_end = partial(wire.send, self.writer, wire.GiveUp(attempt.number))
        return await played

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Take what the worker says until it has ended, or the collection has."""
        try:
            while True:
                message = await asyncio.wait_for(wire.receive(reader), SILENCE_SECONDS)
                if isinstance(message, wire.End):
                    break
                if isinstance(message, wire.Failed):
                    self.error = message.error
                    break
                self._take(message)
        except (asyncio.IncompleteReadError, OSError):
            pass
        except Exception as bug:  # a message that cannot be read: whoever waits for it must know
            self.error = bug
        self.open = False
        for played in self.waiting.values():
            if not played.done():  # else its caller was cancelled
                played.set_exception(self.error)

    def _take(self, message: wire.Played | wire.Progress | wire.Spans) -> None:
        if isinstance(message, wire.Progress):
            self.progress = message
            self.on_progress(message)
        elif isinstance(message, wire.Spans):
            self.spans += message.spans
        elif not (played := self.waiting.pop(message.number)).done():
            played.set_result(message)


@dataclass(slots=True)
class _Place:
    """A worker, and the connection to it: another one after it was started again."""

    worker: Worker
    connection: _Connection
    replacing: asyncio.Lock = field(default_factory=asyncio.Lock)


class RemoteGroupPlayer:
    """Has `workers` play, each of which has `share` episodes in flight, with the engines at `urls`.

    A group whose worker dies is played by another one, up to `retries` times; the worker is started again.
    """

    def __init__(self, workers: Sequence[Worker], share: int, urls: Sequence[str], retries: int) -> None:
        self._workers, self._share, self._retries = workers, share, retries
        self._urls = urls
        self._lost: list[str | None] = [None] * len(urls)
        self._held = False
        self._said = 0  # number of the latest `Serving`
        self._spans: list[Span] = []  # of collections before
        self._connections: list[_Connection] = []  # also to processes that have ended
        self._listening: set[asyncio.Task[None]] = set()
        self._free: asyncio.Queue[_Place] = asyncio.Queue()

    @asynccontextmanager
    async def opened(self, terms: Terms, on_change: Callable[[], None]) -> AsyncIterator[None]:
        """Connects to all workers; raises UserError if one cannot be started."""
        self._terms, self._on_change = terms, on_change
        self._connections, self._free = [], asyncio.Queue()
        try:
            made = await asyncio.gather(*map(self._connect, self._workers))
            places = [_Place(*pair) for pair in zip(self._workers, made, strict=True)]
            for _ in range(1 + math.ceil(self._share / terms.size)):  # one more waits at the worker
                for place in places:
                    self._free.put_nowait(place)
            yield
            for place in places:
                wire.send(place.connection.writer, wire.End())
            await asyncio.gather(*self._listening)
        finally:
            self._spans = [*self.spans()]
            for task in self._listening:
                task.cancel()
            for connection in self._connections:
                connection.open = False
            writers = [connection.writer for connection in self._connections]
            for writer in writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    async def play(self, attempt: Attempt) -> Sequence[Trajectory | None]:
        """The episodes of `attempt`; it goes to the worker that has had room for it longest."""
        for left in reversed(range(self._retries + 1)):
            place = await self._free.get()
            try:
                if attempt.over:
                    return ()
                if isinstance(place.connection.error, WorkerLost):
                    await self._replace(place)  # if it has ended, as it was not this group's doing
                played = await place.connection.play(attempt)
            except WorkerLost as lost:
                await self._replace(place)
                if not left:
                    attempt.end(lost)
            else:
                if played.failure is not None:
                    attempt.end(played.failure)
                return played.episodes
            finally:
                self._free.put_nowait(place)
        return ()

    @property
    def counts(self) -> Counts:
        """Of the collection that is open, or was open last."""
        return Counts.sum(progress.counts for progress in self._heard())

    @property
    def engines(self) -> Sequence[Served]:
        """What each engine did in that collection, for all workers."""
        found = [Served(lost) for lost in self._lost]
        for progress in self._heard():
            for engine, part in zip(found, progress.engines, strict=True):
                engine.add(part)
        return found

    def spans(self) -> Sequence[Span]:
        """What ran since the last call, but in groups under way."""
        spans, self._spans = self._spans, []
        for connection in self._connections:
            told, connection.spans = connection.spans, []
            spans += told
        return spans

    def lose(self, number: int, reason: str) -> None:
        """Let engine `number` serve no longer; the first reason stays."""
        self._lose({number: reason})

    def _lose(self, reasons: Mapping[int, str]) -> None:
        found = {number: reason for number, reason in reasons.items() if self._lost[number] is None}
        for number, reason in found.items():
            self._lost[number] = reason
        if found:
            self._say()

    def readmit(self, urls: Sequence[str]) -> None:
        """Let all engines serve again, at `urls`."""
        self._urls = urls
        self._lost = [None] * len(urls)
        self._say()

    def hold(self, held: bool) -> None:
        """While `held` the engines are paused."""
        self._held = held
        self._say()

    def _say(self) -> None:
        """Tell the workers of the collection that is open, if one is, which engines serve."""
        self._said += 1
        for connection in self._connections:
            if connection.open:
                wire.send(connection.writer, self._serving())

    def _serving(self) -> wire.Serving:
        return wire.Serving(self._said, tuple(self._urls), tuple(self._lost), self._held)

    def _heard(self) -> list[wire.Progress]:
        """The latest report of each worker that has made one, also of those that have ended."""
        return [c.progress for c in self._connections if c.progress is not None]

    def _take(self, progress: wire.Progress) -> None:
        if progress.heard == self._said:  # else it may not know yet that an engine serves again
            self._lose({n: e.lost for n, e in enumerate(progress.engines) if e.lost is not None})
        self._on_change()

    async def _connect(self, worker: Worker) -> _Connection:
        """A connection to `worker`, which is started again if it has ended since the last collection."""
        try:
            reader, writer = await _reach(worker)
        except OSError:
            await asyncio.to_thread(worker.restart)
            reader, writer = await _reach(worker)
        connection = _Connection(writer, self._take)
        self._connections.append(connection)
        writer.write(worker.secret)
        wire.send(writer, wire.Begin(self._terms, self._serving()))
        listening = asyncio.create_task(connection.listen(reader))
        self._listening.add(listening)
        listening.add_done_callback(self._listening.discard)
        return connection

    async def _replace(self, place: _Place) -> None:
        """Start a worker that has ended again, once for all whose groups it had."""
        async with place.replacing:
            if not place.connection.open:
                await asyncio.to_thread(place.worker.restart)
                place.connection = await self._connect(place.worker)


async def _reach(worker: Worker) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = await asyncio.to_thread(worker.address)
    async with asyncio.timeout(SILENCE_SECONDS):
        return await asyncio.open_connection(host, port)
