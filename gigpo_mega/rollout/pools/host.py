"""The environments of one worker, made when they are first used."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any, Protocol

from envs.base import EnvError, Environment, EnvironmentKind, EnvUnavailable
from envs.checks import checked_observation, checked_transition
from gigpo_mega.rollout.pools.base import PoolError

# number of the call, slot, "reset", "renew" (reset a new environment) or "step", its argument
Request = tuple[int, int, str, Any]
Reply = tuple[int, bool, Any]  # number of the call, if it went well, the result or the exception to raise

_CHECKS = {"reset": checked_observation, "step": checked_transition}  # what is plain can be pickled


class Mark(Protocol):
    """Says which slot is at work, to whoever watches the worker."""

    def set(self, slot: int) -> None:
        """Say that a call for `slot` begins now."""
        ...

    def clear(self) -> None:
        """Say that no call is at work."""
        ...


class Host:
    """Holds environments of `kind` by slot and answers calls of them."""

    def __init__(self, mark: Mark, kind: EnvironmentKind, options: dict[str, Any]) -> None:
        self._mark, self._kind, self._options = mark, kind, options
        self._slots: dict[int, Environment] = {}

    def close(self) -> None:
        """Close all environments that can be closed, whatever they raise."""
        for environment in self._slots.values():
            _close(environment)
        self._slots.clear()

    def answer(self, number: int, slot: int, method: str, argument: Any) -> Reply:
        """What the environment of `slot` returns or raises in call `number`."""
        self._mark.set(slot)
        try:
            if method == "renew":
                method = "reset"
                _close(self._slots.pop(slot, None))
            if slot not in self._slots:
                self._slots[slot] = self._kind.environment(**self._options)
            found = getattr(self._slots[slot], method)(argument)
        except EnvError as error:
            again = method == "step" or isinstance(error, EnvUnavailable)
            return number, False, (EnvUnavailable if again else EnvError)(str(error))
        except (Exception, SystemExit) as error:
            return number, False, PoolError(f"{error!r}\n{traceback.format_exc()}")
        finally:
            self._mark.clear()
        try:
            return number, True, _CHECKS[method](found)
        except EnvError as error:
            return number, False, error


def _close(environment: Environment | None) -> None:
    """Close one that is not used again, if it can be: it may have failed before."""
    with contextlib.suppress(Exception):
        getattr(environment, "close", lambda: None)()
