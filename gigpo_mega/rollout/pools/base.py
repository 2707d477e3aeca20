"""What the collector asks of a pool of environments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from envs.base import EnvError, EnvUnavailable, Observation, Task, Transition
from gigpo_mega.errors import UserError


class PoolError(RuntimeError):
    """An environment raised something unforeseen, or the pool is used wrongly: a bug, with its traceback."""


class EnvironmentLost(UserError):
    """An environment is gone with its process; another try plays in a new one.

    `at_fault`: whether it was at work when the process ended, or none was; else its neighbor was.
    """

    def __init__(self, message: str, at_fault: bool) -> None:
        super().__init__(message)
        self.at_fault = at_fault

    def __reduce__(self) -> tuple[type[EnvironmentLost], tuple[Any, ...]]:
        return type(self), (str(self), self.at_fault)  # a rollout worker tells its leader


@contextmanager
def naming(environment: str, task: Task, call: str) -> Iterator[None]:
    """Adds to an environment's error in the block where it went wrong."""
    where = f"environment {environment}, task {task.id}, {call}"
    try:
        yield
    except EnvironmentLost as error:
        raise EnvironmentLost(f"{where}: {error}", error.at_fault) from None
    except (EnvError, PoolError) as error:
        kind = next(kind for kind in (EnvUnavailable, EnvError, PoolError) if isinstance(error, kind))
        raise kind(f"{where}: {error}") from None


class EnvironmentPool(Protocol):
    """Environments in slots; entered once per event loop, around all its calls. A slot serves one call.

    What they return is checked where they are (`envs.checks`): plain values, finite rewards; EnvError if it
    is not. Both calls raise EnvUnavailable or EnvironmentLost if another try may succeed, and PoolError.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def reset(self, slot: int, task: Task, fresh: bool = False) -> Observation:
        """Start `task`, if `fresh` in a new environment; raises EnvError for an unusable task."""
        ...

    async def step(self, slot: int, action: str) -> Transition:
        """Take one action; whatever EnvError the environment raises is EnvUnavailable."""
        ...
