"""One episode of an agent: the model calls that it makes, and what becomes of them."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from envs.agent import Outcome
from envs.base import Task
from gigpo_mega.algorithms.anchors import anchor_key
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.base import Completion, Engine, Sampling
from gigpo_mega.rollout.episode import OnStep
from gigpo_mega.rollout.gateway.answers import read_answer
from gigpo_mega.rollout.gateway.conversations import Conversations
from gigpo_mega.rollout.gateway.requests import ChatRequest, Refusal, read_message
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.types import Step, Trajectory

_ENDED = "the episode of this api key has ended, or there never was one"


@dataclass(frozen=True, slots=True)
class Policy:
    """What answers: `engine`, through the chat template."""

    engine: Engine
    tokenizer: Tokenizer
    prompts: PromptBuilder


@dataclass(slots=True)
class Session:
    """The calls of one episode of `task`; at most `limit` are answered, whatever else was asked in vain.

    It is `over` when the agent has returned, when the engine has failed (`failure` says how), or when
    `on_step` says that nobody waits for the episode any longer.
    """

    policy: Policy
    task: Task
    number: int
    sampling: Sampling
    on_step: OnStep
    limit: int
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    over: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    exceeded: bool = False  # a call beyond `limit` was made
    _steps: dict[int, Step] = field(default_factory=dict[int, Step])  # in the order in which they ended
    _running: set[asyncio.Task[Completion]] = field(default_factory=set[asyncio.Task[Completion]])
    _arrived: int = 0
    _asking: int = 0  # calls that are under way
    _closed: bool = False
    _idle_since: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    _conversations: Conversations = field(init=False)

    def __post_init__(self) -> None:
        self._conversations = Conversations(self.policy.tokenizer)

    @property
    def idle_seconds(self) -> float:
        """How long the agent has been at work without a model call."""
        return 0.0 if self._running else asyncio.get_running_loop().time() - self._idle_since

    async def answer(self, request: ChatRequest) -> dict[str, Any]:
        """The reply to `request`, in OpenAI's form; raises Refusal."""
        number = self._arrive()
        try:
            whole = self._conversations.prompt(request)
            prompt = self.policy.prompts.fit(whole)
            completion = await self._sampled(prompt, request)
            if self.over.is_set():  # the agent has not waited for it
                raise Refusal(_ENDED, 401, "invalid_api_key")
            response = completion.response_ids.tolist()
            text, ended = self.policy.tokenizer.decode(response), completion.finish == "stop"
            answer = read_answer(text, ended, {t["function"]["name"] for t in request.tools}, number)
            said = read_message("answer", answer.message)
            self._conversations.answered(request, whole, said, completion.response_ids)
            self._record(number, request, prompt, completion, text, answer.valid)
        except (UserError, RecursionError) as error:
            raise Refusal(str(error)) from None
        except Refusal:
            raise
        except Exception as error:  # a bug: raised where the episode is played
            self.fail(error)
            raise Refusal("the answer cannot be recorded", 503) from error
        finally:
            self._asking -= 1
        choice = {"index": 0, "message": answer.message, "logprobs": None, "finish_reason": answer.finish}
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(response),
            "total_tokens": len(prompt) + len(response),
            "prompt_tokens_details": {"cached_tokens": completion.cached_tokens},
        }
        return {"id": f"chatcmpl-{self.number}-{number}", "choices": [choice], "usage": usage}

    def trajectory(self, outcome: Outcome) -> Trajectory:
        """The episode; the last call that came, of those that were answered, has all the reward."""
        recorded = [step for _, step in sorted(self._steps.items())]
        end = anchor_key(f"the end, score {outcome.score!r}", salt=self.task.id)
        following = [(step.anchor, step.observation) for step in recorded[1:]]
        steps = [
            replace(step, next_anchor=anchor, next_observation=observation)
            for step, (anchor, observation) in zip(recorded, [*following, (end, "")], strict=True)
        ]
        steps[-1] = replace(steps[-1], reward=outcome.score, success=outcome.success)
        ended_by = "success" if outcome.success else "limit" if self.exceeded else "failure"
        return Trajectory(self.task, tuple(steps), outcome.score, outcome.success, ended_by)

    @property
    def calls(self) -> int:
        """Calls that were answered."""
        return len(self._steps)

    def fail(self, error: Exception) -> None:
        """End the episode; the first failure stays."""
        self.failure = self.failure or error
        self.over.set()

    def close(self) -> None:
        """Refuse whatever is still asked."""
        self._closed = True
        for running in self._running:
            running.cancel()

    def _arrive(self) -> int:
        if self._closed or self.over.is_set():
            raise Refusal(_ENDED, 401, "invalid_api_key")
        if len(self._steps) + self._asking == self.limit:
            self.exceeded = True
            raise Refusal(
                f"this is call {self.limit + 1} of the episode, and environment.max_steps is {self.limit}",
                code="max_steps",
            )
        self._arrived += 1
        self._asking += 1
        return self._arrived

    async def _sampled(self, prompt: list[int], request: ChatRequest) -> Completion:
        most = self.sampling.max_new_tokens
        sampling = replace(self.sampling, max_new_tokens=min(most, request.max_tokens or most))
        running = asyncio.ensure_future(self.policy.engine.generate(prompt, sampling, self.number))
        self._running.add(running)
        try:
            return await running
        except asyncio.CancelledError:
            if not self._closed:  # the agent has hung up
                raise
            raise Refusal(_ENDED, 401, "invalid_api_key") from None
        except UserError as error:  # most are EngineErrors
            self.fail(error)
            raise Refusal(f"the engine has failed: {error}", 503) from None
        finally:
            self._running.discard(running)
            self._idle_since = asyncio.get_running_loop().time()

    def _record(
        self,
        number: int,
        request: ChatRequest,
        prompt: list[int],
        completion: Completion,
        text: str,
        valid: bool,
    ) -> None:
        seen = request.seen
        self._steps[number] = Step(
            prompt_ids=np.array(prompt, dtype=np.int32),
            response_ids=completion.response_ids,
            logprobs=completion.logprobs,
            reward=0.0,
            valid=valid,
            anchor=anchor_key(seen if request.anchor is None else request.anchor, salt=self.task.id),
            versions=completion.versions,
            observation=seen,
            action=text,
        )
        if not self.on_step(len(prompt), completion):
            self.over.set()
