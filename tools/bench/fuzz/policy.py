"""Policies whose every answer is noted, beside what the engine was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self

import numpy as np

from gigpo_mega.coldstart.vocabulary import EOS, PAD
from gigpo_mega.rollout.engines.base import Completion, EngineError, Sampling
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.types import Float32, Int32
from tools.bench.fuzz.text import hostile

STOP = 1
TAGS = ("<action>", "</action>", "<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>")
SENSE = ("up", "look", "search[lamp]", "click[b1]", "go to desk 1", "search France", "<action>left</action>",
         "<search>France</search>", "<think>x</think><action>search[a b]</action>")  # fmt: skip
CALLS = ('<tool_call>{"name": "look", "arguments": {}}</tool_call>',
         'so <tool_call>{"name": "go", "arguments": {"\ud800": [1, "<|im_end|>"]}}</tool_call>',
         '<tool_call>{"name": "look", "arguments": {}}</tool_call><tool_call>{"name": "fly"}</tool_call>',
         '<tool_call>{"name": "look", "arguments": {}}')  # fmt: skip
_EXACT = 2**20  # every log-prob is another multiple of 1 / _EXACT, down to -16: exact in float32


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the engine: arrays as bytes, of which two are equal only to the bit."""

    prompt: bytes  # int32
    ids: bytes  # int32
    logprobs: bytes  # float32
    versions: bytes  # int32

    @classmethod
    def of(cls, prompt: Sequence[int] | Int32, ids: Int32, logprobs: Float32, versions: Int32) -> Self:
        """The call with these arrays."""
        return cls(np.array(prompt, np.int32).tobytes(), *(a.tobytes() for a in (ids, logprobs, versions)))

    @property
    def tokens(self) -> int:
        """Tokens that were sampled."""
        return len(self.ids) // 4


class FakeFuzzer:
    """Says anything, at once: sense, nonsense, markup, spelled control tokens, any ids.

    No log-prob is ever used twice, so each names the token that it was sampled with. Answers may begin with
    the weights before `version`; a share of the requests, `failing`, is refused.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        more: Sequence[str] = (),
        seed: int = 0,
        version: int = 0,
        failing: float = 0.0,
    ) -> None:
        self._tokenizer, self._rng = tokenizer, Random(seed)
        self._sense, self._version, self._failing = (*SENSE, *more), version, failing
        self._said_tokens = 0
        self.calls: list[tuple[int, Call]] = []  # with the session of each
        self.failed = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        if self._rng.random() < 0.5:
            await asyncio.sleep(0)  # another request overtakes this one
        if self._rng.random() < self._failing:
            self.failed += 1
            raise EngineError("the fuzzer refuses")
        stops = self._rng.random() < 0.8
        ids = [*self._said(), *([self._stop()] if stops else [])] or [STOP]
        response = np.array(ids[-sampling.max_new_tokens :], dtype=np.int32)
        serial = self._said_tokens + 1 + np.arange(len(response))
        self._said_tokens += len(response)
        logprobs = (-serial / _EXACT).astype(np.float32)
        versions = np.full(len(response), self._version, np.int32)
        if self._version and self._rng.random() < 0.2:
            versions[: self._rng.randrange(len(response) + 1)] -= 1
        self.calls.append((session, Call.of(prompt_ids, response, logprobs, versions)))
        return Completion(response, logprobs, versions, "stop" if stops else "length", 0)

    async def healthy(self) -> bool:
        return True

    async def held(self) -> None: ...

    def _stop(self) -> int:
        return self._rng.choice((STOP, self._tokenizer.end(chat=True)))

    def _said(self) -> list[int]:
        rng, encode = self._rng, self._tokenizer.encode
        match rng.randrange(7):
            case 0:  # any ids: special ones, single bytes of longer characters
                return [rng.randrange(self._tokenizer.largest_id + 1) for _ in range(rng.randrange(40))]
            case 1:  # spells a special token without being one
                return [*encode("<"), *encode(rng.choice((EOS, PAD))[1:]), *encode(" up")]
            case 2:
                return encode("".join(rng.choices(TAGS, k=rng.randrange(60))))
            case 3:
                return encode(rng.choice(("\0\x1b[2J", "看\u202e🂡", "\n\n\n", "%s {0} \\", "x" * 4000)))
            case 4:
                return encode(hostile(rng))
            case _:
                return encode(rng.choice(self._sense))


class NotedSGLang(SGLangEngine):
    """The client of a real server; notes what the server's answers say, before they are read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls: list[tuple[int, Call]] = []

    def _settle(self, batch: Any, answer: dict[str, Any]) -> None:
        meta = answer["meta_info"]
        if meta["finish_reason"] is not None:
            ids = np.array(answer["output_ids"], np.int32)
            logprobs = np.array([row[0] for row in meta["output_token_logprobs"]], np.float32)
            versions = np.full(len(ids), int(meta["weight_version"]), np.int32)
            prompt = batch[answer.get("index", 0)].ids
            self.calls.append((len(self.calls), Call.of(prompt, ids, logprobs, versions)))
        super()._settle(batch, answer)
