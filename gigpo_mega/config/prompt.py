"""How an environment's text becomes prompts."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, at_least


@dataclass(frozen=True, config=STRICT)
class PromptConfig:
    """How an environment's text becomes prompts, and answers become actions."""

    dialogue: str = "chat"
    """Prompt format and action parsing: `chat` is the paper's message with <think> and <action> tags,
    `compact` plain text for small policies; an environment may bring more."""
    context: Literal["window", "append"] = "window"
    """A fresh message with the last turns at every step (window, as in the paper), or one growing
    conversation (append)."""
    history: int = 2
    """Number of past turns shown in a fresh message."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(0, "prompt", self, "history")
        return self
