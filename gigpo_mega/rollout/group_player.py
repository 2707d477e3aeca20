"""Plays the episodes of groups; an episode that fails for its environment or the engine is played again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from envs.base import EnvUnavailable, Task
from gigpo_mega.rollout.engines.base import Completion, Engine, EngineError, EngineLost, Sampling
from gigpo_mega.rollout.engines.fleet import Fleet, Served
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from gigpo_mega.rollout.episode import OnStep
from gigpo_mega.rollout.pools.base import EnvironmentLost
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.telemetry.timeline import Span, Timeline
from gigpo_mega.types import Trajectory

Failure = EngineError | EnvironmentLost | EnvUnavailable  # after which another try may succeed


@dataclass(frozen=True, slots=True)
class Terms:
    """How the groups of a collection are played: `size` episodes each, `places` groups at once."""

    size: int
    places: int
    sampling: Sampling


@dataclass(slots=True)
class Attempt:
    """A group that is being played, which ends as a whole."""

    number: int
    task: Task
    over: bool = False  # its episodes end after the step they are in
    failure: Failure | None = None
    on_end: Callable[[], None] = lambda: None

    def end(self, failure: Failure | None = None) -> None:
        """End it; the first reason stays."""
        self.failure = self.failure or failure
        if not self.over:
            self.over = True
            self.on_end()


@dataclass(slots=True)
class Counts:
    """What a collection has cost so far, also by episodes that failed later."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens, those found in the engine's prefix cache
    response_tokens: int = 0
    truncated: int = 0  # prompts cut to rollout.max_prompt_tokens
    retries: int = 0  # episodes that were started again
    finished: Counter[int] = field(default_factory=Counter[int])
    """Episodes of the groups under way, by their number."""

    def add(self, prompt_tokens: int, completion: Completion) -> None:
        """Count a step."""
        self.steps += 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += completion.cached_tokens
        self.response_tokens += len(completion.response_ids)

    def since(self, before: Self) -> Self:
        """What was counted after `before`; `finished` from the start."""
        return replace(
            self,
            steps=self.steps - before.steps,
            prompt_tokens=self.prompt_tokens - before.prompt_tokens,
            cached_tokens=self.cached_tokens - before.cached_tokens,
            response_tokens=self.response_tokens - before.response_tokens,
            truncated=self.truncated - before.truncated,
            retries=self.retries - before.retries,
        )

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """What several players have counted; of a group that several began, the most that one finished."""
        total = cls()
        for part in parts:
            total.steps += part.steps
            total.prompt_tokens += part.prompt_tokens
            total.cached_tokens += part.cached_tokens
            total.response_tokens += part.response_tokens
            total.truncated += part.truncated
            total.retries += part.retries
            total.finished |= part.finished
        return total


class EpisodePlayer(Protocol):
    """Plays one episode at a time in each slot."""

    @property
    def engine(self) -> Engine:
        """What samples the answers; entered around a collection."""
        ...

    @property
    def pool(self) -> AbstractAsyncContextManager[Any]:
        """What else is entered around it."""
        ...

    @property
    def prompts(self) -> PromptBuilder:
        """What cuts prompts, and counts those."""
        ...

    async def play(
        self, slot: int, task: Task, sampling: Sampling, fresh: bool, on_step: OnStep
    ) -> Trajectory | None:
        """An episode of `task`, not in what `slot` held before if `fresh`; None if it was ended.

        Raises EngineError, EnvironmentLost or EnvUnavailable if another try may succeed.
        """
        ...


class GroupPlayer(Protocol):
    """Plays groups, of one collection at a time."""

    def opened(self, terms: Terms, on_change: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Ready to play by `terms`, in this event loop; `on_change` is called when an episode has
        finished."""
        ...

    async def play(self, attempt: Attempt) -> Sequence[Trajectory | None]:
        """The episodes of `attempt`, None for those that ended with it.

        An episode that failed too often ends it. Raised at once: EngineLost (no engine is left), EnvError (an
        unusable task or value) and PoolError (an exception).
        """
        ...

    @property
    def counts(self) -> Counts:
        """Of the collection that is open, or was open last."""
        ...

    @property
    def engines(self) -> Sequence[Served]:
        """What each engine did in that collection."""
        ...

    def spans(self) -> Sequence[Span]:
        """What ran since the last call, if the run keeps a timeline."""
        ...

    def lose(self, number: int, reason: str) -> None:
        """Let engine `number` serve no longer."""
        ...

    def readmit(self, urls: Sequence[str]) -> None:
        """Let all engines serve again, at `urls`: they are alive and have the learner's weights."""
        ...

    def hold(self, held: bool) -> None:
        """While `held` the engines are paused, and are not blamed for their silence."""
        ...


class LocalGroupPlayer:
    """Plays them in this process, by `player`, with the engines of `fleet`, of which `clients` can move.

    `concurrency` episodes are in flight at once; slots of the pool are taken in turn and reused. An episode
    is played again at most `retries` times, not counting those that a neighbor in its process ended.
    """

    def __init__(
        self,
        player: EpisodePlayer,
        fleet: Fleet,
        concurrency: int,
        retries: int = 0,
        timeline: Timeline | None = None,
        clients: Sequence[SGLangEngine] = (),
    ) -> None:
        self._player, self._fleet, self._clients = player, fleet, clients
        self._timeline = timeline or Timeline()
        self._concurrency = concurrency
        self._retries = retries
        self._failed: set[int] = set()  # slots whose environment is not to be used again
        self._counts, self._cut_before = Counts(), 0
        self._terms = Terms(0, 0, Sampling())
        self._slots: asyncio.Queue[int] = asyncio.Queue()
        self._on_change: Callable[[], None] = lambda: None

    @asynccontextmanager
    async def opened(self, terms: Terms, on_change: Callable[[], None]) -> AsyncIterator[None]:
        """Enters engines and environments."""
        stops = self._player.prompts.stop_token_ids
        self._terms = replace(terms, sampling=replace(terms.sampling, stop_token_ids=stops))
        self._on_change = on_change
        self._counts, self._cut_before = Counts(), self._player.prompts.truncated
        self._slots = asyncio.Queue()
        for slot in range(min(self._concurrency, terms.places * terms.size)):
            self._slots.put_nowait(slot)
        async with self._player.engine, self._player.pool:
            yield

    @property
    def counts(self) -> Counts:
        """Of the collection that is open, or was open last."""
        return replace(self._counts, truncated=self._player.prompts.truncated - self._cut_before)

    @property
    def engines(self) -> Sequence[Served]:
        """What each engine did in that collection."""
        return self._fleet.members

    def spans(self) -> Sequence[Span]:
        """What ran since the last call, if there is a timeline."""
        return self._timeline.take()

    def lose(self, number: int, reason: str) -> None:
        """Let engine `number` serve no longer."""
        self._fleet.lose(number, reason)

    def readmit(self, urls: Sequence[str]) -> None:
        """Let all engines serve again, at `urls`."""
        for engine, url in zip(self._clients, urls, strict=True):
            engine.move(url)
        for number in range(len(self._fleet.members)):
            self._fleet.readmit(number)

    def hold(self, held: bool) -> None:
        """While `held` the engines are paused."""
        self._fleet.hold(held)

    async def play(self, attempt: Attempt) -> Sequence[Trajectory | None]:
        """The episodes of `attempt`, all at once as far as slots are free."""
        async with asyncio.TaskGroup() as running:
            played = [running.create_task(self._episode(attempt)) for _ in range(self._terms.size)]
        del self._counts.finished[attempt.number]
        return [episode.result() for episode in played]

    async def _episode(self, attempt: Attempt) -> Trajectory | None:
        """An episode of a group, in as many tries as it takes; None if the group was given up meanwhile."""

        def on_step(prompt_tokens: int, completion: Completion) -> bool:
            self._counts.add(prompt_tokens, completion)
            return not attempt.over

        left, slot = self._retries, await self._slots.get()
        try:
            while not attempt.over:
                fresh = slot in self._failed
                self._failed.add(slot)  # until it ends well
                try:
                    trajectory = await self._player.play(
                        slot, attempt.task, self._terms.sampling, fresh, on_step
                    )
                except EngineLost:  # no engine is left, for nobody
                    raise
                except (EngineError, EnvironmentLost, EnvUnavailable) as error:
                    left -= not isinstance(error, EnvironmentLost) or error.at_fault
                    if left < 0:
                        attempt.end(error)
                    elif not attempt.over:
                        self._counts.retries += 1
                else:
                    self._failed.remove(slot)
                    if trajectory is not None:
                        self._counts.finished[attempt.number] += 1
                        self._on_change()
                    return trajectory
            return None
        finally:
            self._slots.put_nowait(slot)
