"""What the collector asks of an engine: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from gigpo_mega.errors import UserError
from gigpo_mega.types import Float32, Int32


class EngineError(UserError):
    """The engine refused a request, died or broke its contract."""


class EngineLost(EngineError):
    """The engine cannot be reached, died, or is too slow: another one may give the answer."""

    url: str | None = None  # of one that fails while it starts


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a response is sampled."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    max_new_tokens: int = 512
    stop_token_ids: tuple[int, ...] = ()  # the one that ends a response is part of it


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response.

    `logprobs` are those of the distribution softmax(logits / temperature) over the whole vocabulary, also
    if top_p < 1 cut it before sampling; for greedy sampling the temperature counts as 1.
    """

    response_ids: Int32  # [R], including the stop token if finish is "stop"
    logprobs: Float32  # [R]
    versions: Int32  # [R] weight version that sampled each token
    finish: Literal["stop", "length"]
    cached_tokens: int  # prompt tokens found in the prefix cache


def positions_needed(prompt: int, response: int) -> int:
    """The context length, and size of the KV cache, with which SGLang samples `response` tokens to `prompt`.

    All in tokens. SGLang 0.5.23 refuses a prompt that reaches the last 6 positions, and cuts, without a word,
    a response that reaches the last 2.
    """
    return max(prompt + 7, prompt + response + 2)


class Engine(Protocol):
    """Samples responses; entered once per event loop, around all its requests."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        """Sample one response to `prompt_ids`; raises EngineError.

        Prompts of one `session` continue each other: what remembers prefixes can be chosen by it.
        """
        ...

    async def healthy(self) -> bool:
        """Whether the engine can give answers now."""
        ...

    async def held(self) -> int | None:
        """Requests that the engine is about to answer, anybody's; None if it does not say."""
        ...
