"""What the collector asks of an engine: token ids in, token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from gigpo_mega.errors import UserError
from gigpo_mega.types import Float32, Int32


class EngineError(UserError):
    """The engine refused a request, died or broke its contract."""


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
    where top_p < 1 cut it before sampling; for greedy sampling the temperature counts as 1.
    """

    response_ids: Int32  # [R], including the stop token where finish is "stop"
    logprobs: Float32  # [R]
    version: int  # weight version that sampled it
    finish: str  # "stop", "length" or "abort"
    cached_tokens: int  # prompt tokens found in the prefix cache


class Engine(Protocol):
    """Samples responses; entered once per event loop, around all its requests."""

    @property
    def version(self) -> int:
        """Weight version that the engine samples with now."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Sample one response to `prompt_ids`; raises EngineError."""
        ...

    async def abort(self) -> None:
        """Make every request in flight finish now, with finish "abort"."""
        ...
