"""Collects groups of episodes: every episode is a task of its own, and none waits for another.

A group of which an episode fails too often is dropped whole, and another task takes its place: no reward is
made up, and no episode is compared with fewer than it should be. Which complete groups count is for the quota
to say, how their episodes are played for a `GroupPlayer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gigpo_mega.errors import UserError, first
from gigpo_mega.rollout.engines.base import Sampling
from gigpo_mega.rollout.group_player import Attempt, Counts, GroupPlayer, Terms
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.types import Group, Trajectory


@dataclass(frozen=True, slots=True)
class CollectStats:
    """How a collection stands, or went."""

    episodes: int  # finished
    total: int  # asked for
    steps: int  # also of episodes that failed later, as everything below
    seconds: float
    prompt_tokens: int
    cached_tokens: int  # of the prompt tokens, those found in the engine's prefix cache
    response_tokens: int
    truncated: int  # prompts cut to rollout.max_prompt_tokens
    retries: int = 0  # episodes that were started again
    dropped: tuple[str, ...] = ()  # why, of each group that was dropped
    refused: int = 0  # complete groups that do not count
    cut: int = 0  # groups that were under way when enough counted


OnCollected = Callable[[CollectStats], None]


class Collector:
    """Has `player` play what a quota needs; `stats` describes the latest collection."""

    def __init__(self, player: GroupPlayer) -> None:
        self.stats = CollectStats(0, 0, 0, 0.0, 0, 0, 0, 0)
        self._player = player

    def collect(
        self, quota: Quota, group_size: int, sampling: Sampling, on_progress: OnCollected | None = None
    ) -> dict[int, Group]:
        """Play `group_size` episodes of each task that `quota` needs; the groups by number, in its order.

        If no task is left to replace it, the failure of an episode after its retries is raised: EngineError,
        EnvironmentLost or EnvUnavailable. Otherwise UserError if more groups were dropped than are needed.
        Always raised, at once: EngineLost (no engine is left), EnvError (an unusable task or value) and
        PoolError (an exception); the last two name environment, task and step. What is raised cancels the
        rest.
        """
        collection = Collection(quota, group_size, self._player, lambda: self._player.counts, on_progress)
        # It returns nothing: asyncio.run forms the repr of what its coroutine returns, here of every array.
        asyncio.run(self._collect(collection, Terms(group_size, quota.places, sampling)))
        return dict(sorted(collection.finished.items()))

    async def _collect(self, collection: Collection, terms: Terms) -> None:
        async with self._player.opened(terms, collection.report):
            try:
                await collection.play()
            finally:
                self.stats = collection.stats()


class Collection:
    """What `quota` needs, on its way: `player` is open, and what it has done since then is in `counts()`."""

    def __init__(
        self,
        quota: Quota,
        group_size: int,
        player: GroupPlayer,
        counts: Callable[[], Counts],
        on_progress: OnCollected | None = None,
    ) -> None:
        self._meter = _Meter(quota.needed * group_size, counts)
        self._intake = _Intake(quota, self._meter)
        self._places, self._player, self._on_progress = quota.places, player, on_progress

    async def play(self) -> None:
        """Play until enough groups count; raises as `Collector.collect` does."""
        try:
            async with asyncio.TaskGroup() as running:
                for _ in range(self._places):
                    running.create_task(self._fill())
        except BaseExceptionGroup as failures:
            raise first(failures) from None

    @property
    def finished(self) -> dict[int, Group]:
        """The complete groups by number."""
        return self._intake.finished

    def stats(self) -> CollectStats:
        """How it stands."""
        return self._meter.stats()

    def report(self) -> None:
        """Tell who asked for progress."""
        if self._on_progress is not None:
            self._on_progress(self.stats())

    async def _fill(self) -> None:
        """Play one group after another until one counts."""
        while (attempt := self._intake.next()) is not None:
            if await self._intake.take(attempt, await self._player.play(attempt)):
                return


class _Intake:
    """Hands out the tasks of a quota and takes their groups until enough of them count."""

    def __init__(self, quota: Quota, meter: _Meter) -> None:
        self.finished: dict[int, Group] = {}
        self._quota, self._meter = quota, meter
        self._running: list[Attempt] = []
        self._needed, self._spares = quota.needed, quota.spares
        self._dropped = quota.needed if quota.dropped is None else quota.dropped
        self._following = next(quota.tasks, None)
        self._keeping = asyncio.Lock()

    def next(self) -> Attempt | None:
        """The next group to be played; None if enough count, or if there is no further task."""
        if not self._needed or self._following is None:
            return None
        attempt = Attempt(*self._following)
        self._following = next(self._quota.tasks, None)
        self._running.append(attempt)
        self._meter.begin(attempt)
        return attempt

    async def take(self, attempt: Attempt, played: Sequence[Trajectory | None]) -> bool:
        """Whether the place of a group needs no other one: it counts, or too many others did not.

        Raises its failure if no task is left to replace it, and UserError if too many have failed.
        """
        self._running.remove(attempt)
        group = Group(attempt.task, tuple(t for t in played if t is not None))
        self._meter.end(attempt, len(group.trajectories))
        async with self._keeping:
            if not self._needed:
                self._meter.cut(attempt)
                return True
            if attempt.failure is not None:
                if self._following is None:
                    raise attempt.failure
                self._meter.drop(attempt, self._dropped)
                return False
            await asyncio.to_thread(self._quota.keep, attempt.number, group)
            self.finished[attempt.number] = group
            if not self._quota.counts(group):
                self._meter.refuse(attempt)
                self._spares -= 1
                return self._spares < 0
            self._needed -= 1
            if not self._needed:
                for other in self._running:
                    other.end()
            return True


class _Meter:
    """Counts what becomes of the groups of one collection and reports it."""

    def __init__(self, total: int, counts: Callable[[], Counts]) -> None:
        self._start = time.monotonic()
        self._total, self._counts = total, counts
        self._begun: set[int] = set()  # groups of this collection, by number
        self._finished: dict[int, int] = {}  # episodes of those that are played no longer
        self._dropped: dict[int, str] = {}  # why, by the number of the group
        self._refused: set[int] = set()
        self._cut: set[int] = set()

    def begin(self, attempt: Attempt) -> None:
        """Count a group."""
        self._begun.add(attempt.number)

    def end(self, attempt: Attempt, episodes: int) -> None:
        """Count the episodes of a group that is played no longer."""
        self._finished[attempt.number] = episodes

    def drop(self, attempt: Attempt, limit: int) -> None:
        """Count a group that was dropped; raises UserError for more than `limit`."""
        reason = f"task {attempt.task.id}: {attempt.failure}"
        self._dropped[attempt.number] = reason
        if len(self._dropped) > limit:
            raise UserError(
                f"rollout: {len(self._dropped)} groups were dropped, more than the {limit} of an iteration, "
                f"because episodes failed for more than rollout.retries; the last one was of {reason}"
            )

    def refuse(self, attempt: Attempt) -> None:
        """Count a complete group that does not count."""
        self._refused.add(attempt.number)

    def cut(self, attempt: Attempt) -> None:
        """Count a group that came too late."""
        self._cut.add(attempt.number)

    def stats(self) -> CollectStats:
        """How the collection stands."""
        counts = self._counts()
        finished = counts.finished | self._finished
        valid = self._begun - self._dropped.keys() - self._refused - self._cut
        return CollectStats(
            episodes=sum(finished.get(number, 0) for number in valid),
            total=self._total,
            steps=counts.steps,
            seconds=time.monotonic() - self._start,
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            response_tokens=counts.response_tokens,
            truncated=counts.truncated,
            retries=counts.retries,
            dropped=tuple(self._dropped.values()),
            refused=len(self._refused),
            cut=len(self._cut),
        )
