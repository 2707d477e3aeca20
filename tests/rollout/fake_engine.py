"""An engine for unit tests, and the words that it and FakeCounter speak."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

import numpy as np

from gigpo_mega.rollout.engines.base import Completion, Sampling

WORDS = "up down fail crash Task: count to Start. Can: up, > 0 1 2 3 4 5 6 7 8 9"
UP, DOWN, FAIL, CRASH = 4, 5, 6, 7


class FakeOpened:
    """What every fake engine is: opened and closed without effect."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def held(self) -> None: ...


class FakeEngine:
    """Answers a prompt with `policy(prompt ids)` and the stop token, after a different delay each time."""

    def __init__(self, policy: Callable[[list[int]], int] = lambda ids: UP) -> None:
        self.policy = policy
        self.version = 5
        self.running = self.most = self.calls = 0
        self.finish: Literal["stop", "length"] = "stop"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep((self.calls * 7 % 5) * 1e-3)
        self.running -= 1
        ids = np.array([self.policy(list(prompt_ids)), 1], dtype=np.int32)
        versions = np.full(2, self.version, np.int32)
        return Completion(ids, np.array([-0.25, -0.5], np.float32), versions, self.finish, 1)

    async def healthy(self) -> bool:
        return True

    async def held(self) -> int:
        return self.running
