"""What pools of workers have in common: what one turn of the event loop asks of a worker is sent at once."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from envs.base import Observation, Task, Transition
from gigpo_mega.rollout.pools.base import EnvironmentLost, PoolError
from gigpo_mega.rollout.pools.host import Reply, Request


@dataclass(slots=True)
class Worker:
    """What the pool knows of one worker, apart from how it is reached."""

    outbox: list[Request] = field(default_factory=list)
    waiting: dict[int, tuple[int, asyncio.Future[Any]]] = field(default_factory=dict)  # slot, by call
    slots: set[int] = field(default_factory=set)  # whose environments it holds
    killed: str = ""  # why, if it was by us


W = TypeVar("W", bound=Worker)


class BatchedPool(ABC, Generic[W]):
    """`count` workers holding environments; slot i lives in worker i modulo `count`.

    Slots are made when first used and can be reused. Enter the pool (`async with pool`) in each event loop
    that uses it; `close()` ends the workers. A slot serves one call at a time; one whose caller is cancelled
    is completed all the same, before the slot's next one, and its answer is dropped.

    A worker is killed when a call of one of its environments takes more than `step_timeout` seconds. However
    it ends, each of its slots raises EnvironmentLost until it is reset, which starts another worker.
    """

    def __init__(self, count: int, step_timeout: float | None) -> None:
        self._timeout = step_timeout
        self._numbers = itertools.count()  # of calls: an answer is never taken for that of another call
        self._lost: dict[int, EnvironmentLost] = {}  # by slot
        self._starting: list[asyncio.Lock] = []  # by worker; none outside `async with`
        self._watching: asyncio.Task[None] | None = None
        self._workers = [self._start() for _ in range(count)]

    async def reset(self, slot: int, task: Task, fresh: bool = False) -> Observation:
        """Start `task`, if `fresh` in a new environment; raises EnvError for an unusable task."""
        self._lost.pop(slot, None)
        return await self._call(slot, "renew" if fresh else "reset", task)

    async def step(self, slot: int, action: str) -> Transition:
        """Take one action; raises EnvironmentLost if the slot's environment is gone."""
        if slot in self._lost:
            raise self._lost[slot]
        return await self._call(slot, "step", action)

    async def __aenter__(self) -> Self:
        self._starting = [asyncio.Lock() for _ in self._workers]
        await asyncio.gather(*(self._serving(index) for index in range(len(self._workers))))
        if self._timeout is not None:
            self._watching = asyncio.create_task(self._watch(self._timeout))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        self._starting = []
        for worker in self._workers:
            if worker.waiting:  # abandoned calls: an answer may have been read in part
                worker.waiting.clear()
                self._stop(worker)
            await self._detach(worker)

    @abstractmethod
    def _start(self) -> W:
        """A new worker."""

    @abstractmethod
    async def _attach(self, worker: W) -> None:
        """Make `worker` usable in this event loop."""

    @abstractmethod
    async def _detach(self, worker: W) -> None:
        """Undo `_attach`."""

    @abstractmethod
    def _serves(self, worker: W) -> bool:
        """Whether `worker` is attached to this event loop and not known to have ended."""

    @abstractmethod
    def _ended(self, worker: W) -> bool:
        """Whether `worker` has ended: if it is attached, as all who waited for it have been told."""

    @abstractmethod
    def _send(self, worker: W, batch: list[Request]) -> None:
        """Have `worker` answer `batch`; the answers go to `_deliver`, its end to `_gone`."""

    @abstractmethod
    async def _at_work(self, worker: W) -> tuple[int | None, float]:
        """The slot at work in `worker` and the seconds that its call has taken."""

    @abstractmethod
    def _kill(self, worker: W) -> None:
        """End `worker` at once, whatever it is doing."""

    @abstractmethod
    def _stop(self, worker: W) -> None:
        """End `worker` and wait until it is gone; harmless when repeated."""

    async def _serving(self, index: int) -> W:
        """Worker `index`, started anew if it has ended."""
        async with self._starting[index]:
            worker = self._workers[index]
            if self._ended(worker):
                self._stop(worker)
                await self._detach(worker)
                self._workers[index] = worker = self._start()
            if not self._serves(worker):
                await self._attach(worker)
            return worker

    async def _call(self, slot: int, method: str, argument: Any) -> Any:
        if not self._starting:
            raise PoolError("the environment pool is used outside `async with pool`")
        index = slot % len(self._workers)
        worker = self._workers[index]
        if not self._serves(worker):
            worker = await self._serving(index)
        loop = asyncio.get_running_loop()
        worker.slots.add(slot)
        number, future = next(self._numbers), loop.create_future()
        worker.waiting[number] = slot, future
        worker.outbox.append((number, slot, method, argument))
        if len(worker.outbox) == 1:
            loop.call_soon(self._flush, worker)
        return await future

    def _flush(self, worker: W) -> None:
        batch, worker.outbox = worker.outbox, []
        self._send(worker, batch)

    def _deliver(self, worker: W, replies: Iterable[Reply]) -> None:
        for number, good, result in replies:
            _, future = worker.waiting.pop(number, (None, None))
            if future is not None and not future.done():  # else its caller was cancelled, or has been told
                future.set_result(result) if good else future.set_exception(result)

    def _gone(self, worker: W, obituary: str, at_work: int | None) -> None:
        """Tell all whose environments `worker` held that it ended, if known in a call of slot `at_work`."""
        for slot in worker.slots:
            self._lost[slot] = EnvironmentLost(obituary, at_fault=at_work in (None, slot))
        for slot, future in worker.waiting.values():
            if not future.done():
                future.set_exception(self._lost[slot])
        worker.waiting.clear()
        worker.slots.clear()

    async def _watch(self, limit: float) -> None:
        """Kill workers that have been at one call for more than `limit` seconds."""
        while True:
            await asyncio.sleep(min(limit / 4, 1.0))
            for worker in self._workers:
                if not worker.waiting or worker.killed:
                    continue
                at_work, seconds = await self._at_work(worker)
                if at_work is not None and seconds > limit:
                    worker.killed = f"was killed: a call took more than environment.step_timeout {limit:g} s"
                    self._kill(worker)
