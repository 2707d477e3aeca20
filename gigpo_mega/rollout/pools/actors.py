"""Environments in actors of a Ray cluster, on whatever machines it has."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from envs.registry import address, lookup
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.cluster import ROOM_SECONDS, connected
from gigpo_mega.rollout.pools.base import PoolError
from gigpo_mega.rollout.pools.batched import BatchedPool, Worker
from gigpo_mega.rollout.pools.host import Host, Reply, Request


class ActorHost:
    """What an actor runs: a `Host`, and beside it an answer to who is at work."""

    def __init__(self, name: str, options: str) -> None:
        self._mark = _Mark()
        self._host = Host(self._mark, lookup(name), json.loads(options))

    def answer(self, batch: list[Request]) -> list[Reply]:
        """Work through `batch`."""
        return [self._host.answer(*request) for request in batch]

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
    """An actor, and the batches that it owes an answer to in this event loop."""

    actor: Any
    attached: bool = False
    ended: bool = False
    at_work: int | None = None  # the slot that was at work when it was killed
    posts: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def obituary(self) -> str:
        """How it ended."""
        return f"environment worker (Ray actor) {self.killed or 'died, with its process or its node'}"


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
        for post in worker.posts:
            post.cancel()
        await asyncio.gather(*worker.posts, return_exceptions=True)
        worker.attached = False

    def _serves(self, worker: ActorWorker) -> bool:
        return worker.attached and not worker.ended

    def _ended(self, worker: ActorWorker) -> bool:
        return worker.ended

    def _send(self, worker: ActorWorker, batch: list[Request]) -> None:
        post = asyncio.get_running_loop().create_task(self._post(worker, batch))
        worker.posts.add(post)
        post.add_done_callback(worker.posts.discard)

    async def _post(self, worker: ActorWorker, batch: list[Request]) -> None:
        try:
            self._deliver(worker, await worker.actor.answer.remote(batch))
        except self._ray.exceptions.RayActorError:  # also one that cannot be reached for a while
            self._stop(worker)
            self._gone(worker, worker.obituary(), worker.at_work)

    async def _at_work(self, worker: ActorWorker) -> tuple[int | None, float]:
        try:
            worker.at_work, seconds = await self._asked(worker)
        except self._ray.exceptions.RayActorError:  # who waits for it is told by its post
            return None, 0.0
        return worker.at_work, seconds

    async def _answers(self, worker: ActorWorker) -> bool:
        try:
            await self._asked(worker)
        except self._ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise PoolError(f"an environment worker cannot be made: {error}") from None
            return False
        return True

    def _asked(self, worker: ActorWorker) -> Any:
        return worker.actor.at_work.options(concurrency_group="watch").remote()

    def _kill(self, worker: ActorWorker) -> None:
        if self._ray.is_initialized():
            self._ray.kill(worker.actor)

    def _stop(self, worker: ActorWorker) -> None:
        self._kill(worker)
        worker.ended = True
