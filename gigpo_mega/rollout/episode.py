"""One episode: observation, prompt, response, action, and so on to its end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from envs.base import Observation, Task, Transition
from envs.dialogue import Answer, Dialogue
from gigpo_mega.algorithms.anchors import anchor_key
from gigpo_mega.config import EnvironmentConfig
from gigpo_mega.rollout.engines.base import Completion, Engine, Sampling
from gigpo_mega.rollout.pools.base import EnvironmentPool, naming
from gigpo_mega.rollout.prompt import EpisodePrompt, PromptBuilder, adapted
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.telemetry.timeline import Timeline
from gigpo_mega.types import Step, Trajectory

OnStep = Callable[[int, Completion], bool]  # prompt tokens, response -> whether the episode goes on


class Player:
    """Plays episodes: actions from `engine`, in the environments of `pool`."""

    def __init__(
        self,
        engine: Engine,
        pool: EnvironmentPool,
        prompts: PromptBuilder,
        dialogue: Dialogue,
        tokenizer: Tokenizer,
        config: EnvironmentConfig,
        timeline: Timeline | None = None,
    ) -> None:
        self.engine, self.pool, self.prompts = engine, pool, prompts
        self._timeline = timeline or Timeline()
        self._tokenizer = tokenizer
        self._config = config
        self._read = adapted(dialogue, tokenizer).read
        self._sessions = itertools.count()

    async def play(
        self, slot: int, task: Task, sampling: Sampling, fresh: bool, on_step: OnStep
    ) -> Trajectory | None:
        """An episode of `task` in the environment of `slot`, if `fresh` in a new one; None if it was ended.

        Raises EngineError, EnvironmentLost or EnvUnavailable if another try may succeed, else EnvError (an
        unusable task or value) or PoolError (an exception); those of the environment name task and step.
        """
        name, session, steps = self._config.name, next(self._sessions), list[Step]()
        track = f"{self._timeline.place}environments {slot % self._config.workers}"
        with naming(name, task, "reset"), self._timeline.span(track, f"episode {session}: reset {task.id}"):
            prompt = self.prompts.start(await self.pool.reset(slot, task, fresh))
        while True:
            ids = prompt.ids()
            completion = await self.engine.generate(ids, sampling, session)
            text = self._tokenizer.decode(completion.response_ids.tolist())
            answer = self._read(text, completion.finish == "stop")
            call = f"step {len(steps) + 1}"
            with naming(name, task, call), self._timeline.span(track, f"episode {session}: {call}"):
                transition = await self.pool.step(slot, answer.action)
            steps.append(self._recorded(prompt, ids, completion, answer, transition, salt=task.id))
            goes_on, limit = on_step(len(ids), completion), len(steps) == self._config.max_steps
            if transition.done or limit:
                # Success counts in the last step only: whatever was reached before may be lost again.
                ended_by = "success" if transition.success else "limit" if limit else "failure"
                score = math.fsum(step.reward for step in steps)  # whatever their order
                return Trajectory(task, tuple(steps), score, transition.success, ended_by)
            if not goes_on:
                return None
            prompt.advance(answer.action, transition.observation, completion.response_ids.tolist())

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
            anchor=_anchor(seen, salt),
            versions=completion.versions,
            observation=seen.text,
            action=answer.action,
            success=transition.success,
            next_anchor=_anchor(transition.observation, salt),
            next_observation=transition.observation.text,
        )


def _anchor(seen: Observation, salt: str) -> bytes:
    return anchor_key(seen.text if seen.state is None else seen.state, salt=salt)
