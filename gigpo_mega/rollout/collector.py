"""Plays episodes: every episode is a task of its own, and none waits for another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.base import Task, Transition
from envs.dialogue import Answer, Dialogue
from gigpo_mega.algorithms.grouping import anchor_key
from gigpo_mega.config import EnvironmentConfig
from gigpo_mega.rollout.engine import Completion, Engine, EngineError, Sampling
from gigpo_mega.rollout.pool import EnvironmentPool
from gigpo_mega.rollout.prompt import EpisodePrompt, PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.types import EndedBy, Group, Step, Trajectory


@dataclass(frozen=True, slots=True)
class CollectStats:
    """How a collection stands, or went."""

    episodes: int  # finished
    total: int  # asked for
    steps: int
    seconds: float
    prompt_tokens: int
    cached_tokens: int  # of the prompt tokens, those found in the engine's prefix cache
    response_tokens: int
    truncated: int  # prompts cut to rollout.max_prompt_tokens


Progress = Callable[[CollectStats], None]


class Collector:
    """Samples groups of episodes from `engine` in the environments of `pool`.

    `concurrency` episodes are in flight at once; slots of the pool are taken in turn and reused. `stats`
    describes the latest collection.
    """

    def __init__(
        self,
        engine: Engine,
        pool: EnvironmentPool,
        prompts: PromptBuilder,
        dialogue: Dialogue,
        tokenizer: Tokenizer,
        config: EnvironmentConfig,
        concurrency: int,
    ) -> None:
        self.stats = CollectStats(0, 0, 0, 0.0, 0, 0, 0, 0)
        self._engine = engine
        self._pool = pool
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._config = config
        self._concurrency = concurrency
        self._read = dialogue.read

    def collect(
        self, tasks: Sequence[Task], group_size: int, sampling: Sampling, on_progress: Progress | None = None
    ) -> tuple[Group, ...]:
        """Play `group_size` episodes of each task; group i belongs to tasks[i] whatever finished first.

        The first failure of the engine or an environment cancels the rest and is raised as it is:
        EngineError, UserError (a dead worker), EnvironmentError (a task that can't be used) or PoolError.
        """
        return asyncio.run(self._collect(tasks, group_size, sampling, on_progress))

    async def _collect(
        self, tasks: Sequence[Task], group_size: int, sampling: Sampling, on_progress: Progress | None
    ) -> tuple[Group, ...]:
        played = [task for task in tasks for _ in range(group_size)]
        meter = _Meter(len(played), self._prompts, on_progress)
        free: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(min(self._concurrency, len(played))):
            free.put_nowait(slot)

        async def play(task: Task) -> Trajectory:
            slot = await free.get()
            trajectory = await self._episode(slot, task, sampling, meter)
            free.put_nowait(slot)
            meter.finish()
            return trajectory

        async with self._engine, self._pool:
            try:
                async with asyncio.TaskGroup() as running:
                    episodes = [running.create_task(play(task)) for task in played]
            except BaseExceptionGroup as failures:
                raise _first(failures) from None
        self.stats = meter.stats()
        done = [episode.result() for episode in episodes]
        return tuple(
            Group(task, tuple(done[i * group_size : (i + 1) * group_size])) for i, task in enumerate(tasks)
        )

    async def _episode(self, slot: int, task: Task, sampling: Sampling, meter: _Meter) -> Trajectory:
        prompt = self._prompts.start(await self._pool.reset(slot, task))
        steps: list[Step] = []
        ended_by: EndedBy = "limit"
        while len(steps) < self._config.max_steps:
            ids = prompt.ids()
            completion = await self._engine.generate(ids, sampling)
            answer = self._answer(completion)
            transition = await self._pool.step(slot, answer.action)
            steps.append(self._recorded(prompt, ids, completion, answer, transition, salt=task.id))
            meter.step(completion, len(ids))
            if transition.success:
                ended_by = "success"
            elif transition.done and len(steps) < self._config.max_steps:
                ended_by = "failure"
            if transition.done:
                break
            prompt.advance(answer.action, transition.observation, completion.response_ids.tolist())
        score = sum(step.reward for step in steps)
        return Trajectory(task, tuple(steps), score, ended_by == "success", ended_by)

    def _answer(self, completion: Completion) -> Answer:
        if completion.finish == "abort":
            raise EngineError("the engine aborted a request in flight")
        text = self._tokenizer.decode(completion.response_ids.tolist())
        return self._read(text, completion.finish == "stop")

    def _recorded(
        self,
        prompt: EpisodePrompt,
        ids: list[int],
        completion: Completion,
        answer: Answer,
        transition: Transition,
        salt: str,
    ) -> Step:
        seen = prompt.observation
        accepted = transition.valid or self._config.invalid == "format"
        return Step(
            prompt_ids=np.array(ids, dtype=np.int32),
            response_ids=completion.response_ids,
            logprobs=completion.logprobs,
            reward=transition.reward,
            valid=answer.valid and accepted,
            anchor=anchor_key(seen.text if seen.state is None else seen.state, salt=salt),
            version=completion.version,
            observation=seen.text,
            action=answer.action,
        )


class _Meter:
    """Counts what happens during one collection and reports it."""

    def __init__(self, total: int, prompts: PromptBuilder, on_progress: Progress | None) -> None:
        self._start = time.monotonic()
        self._total = total
        self._prompts = prompts
        self._truncated = prompts.truncated
        self._on_progress = on_progress
        self._episodes = self._steps = self._prompt = self._cached = self._response = 0

    def step(self, completion: Completion, prompt_tokens: int) -> None:
        self._steps += 1
        self._prompt += prompt_tokens
        self._cached += completion.cached_tokens
        self._response += len(completion.response_ids)
        self._report()

    def finish(self) -> None:
        self._episodes += 1
        self._report()

    def stats(self) -> CollectStats:
        return CollectStats(
            episodes=self._episodes,
            total=self._total,
            steps=self._steps,
            seconds=time.monotonic() - self._start,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            response_tokens=self._response,
            truncated=self._prompts.truncated - self._truncated,
        )

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.stats())


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
