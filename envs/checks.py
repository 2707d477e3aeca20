"""What a user's environment returns, as plain values of the promised types, or refused in one line.

Numpy's scalars and arrays of one element become Python's: plain values can be sent to any process and written
to any file. Nothing else is converted, because a guess (`"False"` is true) would be silently wrong.
"""

from __future__ import annotations

from typing import Any

from envs.base import LARGEST_REWARD, EnvError, Observation, Transition


def checked_observation(found: object) -> Observation:
    """The observation `found`; raises EnvError for anything else, naming what is wrong."""
    if not isinstance(found, Observation):
        raise EnvError(f"the observation is {_shown(found)}, not envs.Observation")
    state = None if found.state is None else _text("state", found.state)
    admissible: Any = found.admissible
    if isinstance(admissible, str) or not hasattr(admissible, "__iter__"):
        raise EnvError(f"observation.admissible is {_shown(admissible)}; it must be a tuple of texts")
    commands = tuple(_text("admissible", command) for command in admissible)
    return Observation(_text("text", found.text), commands, _text("instruction", found.instruction), state)


def checked_transition(found: object) -> Transition:
    """The transition `found` with a finite reward; raises EnvError for anything else."""
    if not isinstance(found, Transition):
        raise EnvError(f"step returned {_shown(found)}, not envs.Transition")
    return Transition(
        checked_observation(found.observation),
        checked_number("reward", found.reward),
        checked_flag("done", found.done),
        checked_flag("success", found.success),
        checked_flag("valid", found.valid),
    )


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise EnvError(f"observation.{name} has {_shown(value)}; it must be text (str)")
    return str(value)


def checked_number(name: str, given: object) -> float:
    """The reward or score `given`, a finite number; raises EnvError for anything else."""
    value = _scalar(given)
    if not isinstance(value, int | float):
        raise EnvError(f"{name} is {_shown(given)}; it must be a number")
    if not abs(value) <= LARGEST_REWARD:
        number = value if isinstance(value, float) else "an integer beyond that"
        raise EnvError(f"{name} is {number}; it must be finite, at most {LARGEST_REWARD:g} in size")
    return float(value)


def checked_flag(name: str, given: object) -> bool:
    """The truth value `given`; raises EnvError for anything else."""
    value = _scalar(given)
    if not isinstance(value, int | float) or value not in (0, 1):
        raise EnvError(f"{name} is {_shown(given)}; it must be True or False")
    return bool(value)


def _scalar(value: Any) -> object:
    """The Python value in a numpy scalar, or in an array or tensor of one element."""
    try:
        return value.item() if hasattr(value, "item") else value
    except (TypeError, ValueError, RuntimeError):  # several elements
        return value


def _shown(value: object) -> str:
    shown = " ".join(repr(value).split())
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"
