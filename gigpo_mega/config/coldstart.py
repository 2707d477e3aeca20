"""Behavior cloning before reinforcement learning."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, at_least, require


@dataclass(frozen=True, config=STRICT)
class ColdstartConfig:
    """Behavior cloning of expert episodes."""

    games: int = 1000
    """Expert episodes played."""
    failures: bool = False
    """Clone the episodes in which the expert fails, too."""
    detour: float = 0.2
    """Probability that the demonstrator idles or explores instead of the expert's command."""
    updates: int = 1000
    """Optimizer updates."""
    rows_per_update: int = 32
    """Expert actions per optimizer update."""
    prompt_weight: float = 0.0
    """Weight of a prompt token's log-likelihood relative to an action token's 1; from scratch, a weight above
    0 teaches the policy to copy."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "coldstart", self, "games", "updates", "rows_per_update")
        require(0 <= self.detour <= 1, f"coldstart.detour must be in [0, 1], got {self.detour}")
        at_least(0, "coldstart", self, "prompt_weight")
        return self
