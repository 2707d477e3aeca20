"""Environments in actors of a Ray cluster, on whatever machines it has."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from envs.registry import address, lookup
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.cluster import ROOM_SECONDS, ActorLost, connected, noticing_ends
from gigpo_mega.rollout.pools.base import PoolError
from gigpo_mega.rollout.pools.batched import BatchedPool, Worker
from gigpo_mega.rollout.pools.host import Host, Reply, Request


class ActorHost:
    """What an actor runs: a `Host`, and beside it an answer to who is at work."""

    def __init__(self, name: str, options: str) -> None:
        self._mark = _Mark()
        self._host = Host(self._mark, lookup(name), json.loads(options))

    def answer(self, request: Request) -> Reply:
        """As `Host.answer`."""
        return self._host.answer(*request)

    def close(self) -> None:
        """As `Host.close`."""
        self._host.close()

    def at_work(self) -> tuple[int | None, float]:
        """The slot at work and the seconds that its call has taken; answered during a call, too."""
        return self._mark.read()


class _Mark:
    """The slot at work, in this process."""

    def __init__(self) -> None:
        self._lock, self._slot, self._since = threading.Lock(), None, 0.0

    def set(self, slot: int) -> None:
        with self._lock:
            self._slot, self._since = slot, time.monotonic()

    def clear(self) -> None:
        with self._lock:
            self._slot = None

    def read(self) -> tuple[int | None, float]:
        with self._lock:
            return self._slot, time.monotonic() - self._since


@dataclass(slots=True, kw_only=True)
class ActorWorker(Worker):
    """An actor, and the requests that it gets next."""

    actor: Any
    attached: bool = False
    ended: bool = False
    requests: deque[Request] = field(default_factory=deque[Request])
    posting: asyncio.Task[None] | None = None

    def obituary(self, lost: ActorLost) -> str:
        """How it ended; `lost` is what Ray says."""
        first, *_ = str(lost).splitlines() or [""]
        died = f"died, with its process or its node: {first}"
        return f"environment worker (Ray actor) {self.killed or died}"


class RayPool(BatchedPool[ActorWorker]):
    """`workers` actors holding environments of kind `name`, spread over the nodes of the cluster.

    The cluster is the one that RAY_ADDRESS names or that runs on this machine; if there is none, one is
    started on this machine and ends with this process. The package must be importable on every node. Raises
    UserError if Ray is not installed or the cluster cannot be reached.
    """

    def __init__(
        self, name: str, options: dict[str, Any], workers: int, step_timeout: float | None = None
    ) -> None:
        self._ray = connected("rollout.pool ray")
        host = self._ray.remote(concurrency_groups={"watch": 1})(ActorHost)
        self._host = host.options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")
        self._arguments = [address(name), json.dumps(options)]
        super().__init__(workers, step_timeout)

    def close(self) -> None:
        """Close the environments, which may take two seconds, and end the actors; harmless when repeated."""
        living = [worker for worker in self._workers if not worker.ended]
        if living and self._ray.is_initialized():
            self._ray.wait([one.actor.close.remote() for one in living], num_returns=len(living), timeout=2)
        for worker in living:
            self._stop(worker)

    def _start(self) -> ActorWorker:
        return ActorWorker(actor=self._host.remote(*self._arguments))

    async def _attach(self, worker: ActorWorker) -> None:
        """Raises UserError if the cluster has no room for it, PoolError if it cannot be made."""
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                while not await self._answers(worker):  # it was placed on a node that is going
                    worker.actor = self._host.remote(*self._arguments)
        except TimeoutError:
            free = self._ray.available_resources().get("CPU", 0.0)
            raise UserError(
                f"rollout.pool ray: the cluster had no CPU for an environment worker within {ROOM_SECONDS:g} "
                f"s ({free:g} are free, {len(self._workers)} are needed); lower environment.workers or add "
                "nodes"
            ) from None
        worker.attached = True

    async def _detach(self, worker: ActorWorker) -> None:
        if worker.posting is not None:
            worker.posting.cancel()
            await asyncio.gather(worker.posting, return_exceptions=True)
        worker.posting, worker.attached = None, False

    def _serves(self, worker: ActorWorker) -> bool:
        return worker.attached and not worker.ended

    def _ended(self, worker: ActorWorker) -> bool:
        return worker.ended

    def _send(self, worker: ActorWorker, batch: list[Request]) -> None:
        worker.requests.extend(batch)
        if worker.posting is None or worker.posting.done():
            worker.posting = asyncio.get_running_loop().create_task(self._post(worker))

    async def _post(self, worker: ActorWorker) -> None:
        """Have the requests answered one at a time: the one that the actor ends in was at work, for certain.

        Of several it could have answered some, and the answers be lost with it.
        """
        while worker.requests:
            number, slot, *_ = request = worker.requests.popleft()
            try:
                with noticing_ends():
                    reply = await worker.actor.answer.remote(request)
            except ActorLost as lost:  # also one that cannot be reached for a while
                self._gone(worker, worker.obituary(lost), slot)
                self._stop(worker)
                return
            except Exception as error:  # a bug, which must not leave its caller waiting
                reply = number, False, PoolError(f"{error!r}\n{traceback.format_exc()}")
            self._deliver(worker, [reply])

    async def _at_work(self, worker: ActorWorker) -> tuple[int | None, float]:
        try:
            return await self._asked(worker)
        except ActorLost:  # who waits for it is told by its post
            return None, 0.0

    async def _answers(self, worker: ActorWorker) -> bool:
        try:
            await self._asked(worker)
        except ActorLost as lost:
            if lost.at_start:
                raise PoolError(f"an environment worker cannot be made: {lost}") from None
            return False
        return True

    async def _asked(self, worker: ActorWorker) -> tuple[int | None, float]:
        with noticing_ends():
            return await worker.actor.at_work.options(concurrency_group="watch").remote()

    def _kill(self, worker: ActorWorker) -> None:
        if self._ray.is_initialized():
            self._ray.kill(worker.actor)

    def _stop(self, worker: ActorWorker) -> None:
        worker.ended = True
        self._kill(worker)
