"""Agents that a user has written: programs that play an episode by asking a chat endpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from envs.base import EnvError
from envs.checks import checked_flag, checked_number
from envs.imports import imported


@dataclass(frozen=True, slots=True)
class Connection:
    """The chat endpoint of one episode, of OpenAI's form."""

    base_url: str
    api_key: str  # says which episode a request belongs to; worthless after it
    model: str  # what requests call the policy


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an episode went."""

    score: float  # finite, at most LARGEST_REWARD in size
    success: bool  # what is reported


Agent = Callable[..., float | Outcome]  # of (task, connection), and environment.options by name


def find_agent(location: str) -> Agent:
    """The function at `location`, `module:attribute`; raises EnvError if it cannot be imported."""
    found = imported(location, "rollout.agent", "functions", inspect.isfunction)
    if not callable(found):
        raise EnvError(f"rollout.agent {location} is {type(found).__name__}, not a function")
    return cast("Agent", found)


def checked_outcome(found: object) -> Outcome:
    """The outcome `found`; a number alone is the score, of a success if it is positive.

    Raises EnvError for anything else.
    """
    if isinstance(found, Outcome):
        return Outcome(checked_number("score", found.score), checked_flag("success", found.success))
    score = checked_number("the agent's score", found)
    return Outcome(score, success=score > 0)
