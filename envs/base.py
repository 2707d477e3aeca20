"""What an environment is to the rest of the house: a few frozen values, one protocol, one registry.

Nothing here imports torch or gigpo_mega: environments run in light worker processes.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from envs.dialogue import Dialogue


class EnvironmentError(ValueError):
    """A task, file or option an environment cannot use; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem an episode can be started on: the same task always gives the same initial state."""

    id: str  # stable and unique within a run, e.g. the game's folder name
    kind: str  # reported per kind, e.g. "pick_and_place_simple"
    source: str  # what the environment loads, e.g. the path of a game file


@dataclass(frozen=True, slots=True)
class Observation:
    """What the agent sees after reset or a step."""

    text: str
    admissible: tuple[str, ...] = ()  # commands accepted now; empty where the action space is open
    instruction: str = ""  # what the episode asks for; set by reset, constant afterwards
    state: str | None = None  # canonical text of the anchor state; None means `text`


@dataclass(frozen=True, slots=True)
class Transition:
    """The result of one action."""

    observation: Observation
    reward: float
    done: bool
    success: bool
    valid: bool  # False where the environment did not understand or accept the action


class Environment(Protocol):
    """A text environment; one instance plays one episode at a time and is reused for many."""

    def reset(self, task: Task) -> Observation: ...

    def step(self, action: str) -> Transition: ...


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An episode of a demonstrator: what it saw and what it did, step by step."""

    turns: tuple[tuple[Observation, str], ...]
    success: bool


class TaskSource(Protocol):
    """Lists the tasks of a split."""

    def tasks(self, split: str) -> Sequence[Task]: ...


class Demonstrator(Protocol):
    """An expert that plays `task`; with probability `detour` a step is something else than the best.

    `options` are those that the environment is made with.
    """

    def __call__(
        self, task: Task, *, seed: int, detour: float, max_steps: int, options: Mapping[str, Any]
    ) -> Demonstration: ...


@dataclass(frozen=True, slots=True)
class EnvironmentKind:
    """What a run needs to know of an environment: how to make one, and how to list its tasks."""

    environment: Callable[..., Environment]
    tasks: Callable[..., TaskSource]
    demonstrate: Demonstrator | None = None  # whom a cold start clones
    dialogues: Mapping[str, Dialogue] = field(default_factory=dict)  # its own, beside the generic ones
    columns: Mapping[str, str] = field(default_factory=dict)  # Task.kind -> its column in the paper's tables


_REGISTRY: dict[str, EnvironmentKind] = {}


def register(name: str, kind: EnvironmentKind) -> None:
    """Make `kind` available under `name`; raises EnvironmentError where the name is taken."""
    if name in _REGISTRY:
        raise EnvironmentError(f"environment {name!r} is already registered")
    _REGISTRY[name] = kind


def lookup(name: str) -> EnvironmentKind:
    """The environment called `name`: registered, a package of `envs`, or your own as `module:attribute`.

    Raises EnvironmentError naming the known ones, or saying why your own can't be imported.
    """
    module, _, attribute = name.partition(":")
    if attribute:
        return _imported(module, attribute)
    if name not in _REGISTRY and name.isidentifier() and importlib.util.find_spec(f"envs.{name}") is not None:
        importlib.import_module(f"envs.{name}")  # registers itself
    if name not in _REGISTRY:
        ours = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg}
        known = ", ".join(sorted(_REGISTRY.keys() | ours))
        raise EnvironmentError(f"environment.name: unknown environment {name!r}; known: {known}")
    return _REGISTRY[name]


def _imported(module: str, attribute: str) -> EnvironmentKind:
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EnvironmentError(
            f"environment.name {module}:{attribute}: {error}; run where {module}.py lies, or set PYTHONPATH"
        ) from None
    if not isinstance(kind, EnvironmentKind):
        raise EnvironmentError(
            f"environment.name {module}:{attribute} is {type(kind).__name__}, not an envs.EnvironmentKind"
        )
    return kind


def check_options(factory: Callable[..., object], options: Mapping[str, object], section: str) -> None:
    """Raise EnvironmentError where `factory` takes no keyword argument of some name in `options`."""
    accepted = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        return
    for name in options:
        if name not in accepted:
            raise EnvironmentError(f"unknown key {section}.{name}; known: {', '.join(accepted)}")


def make(name: str, **options: Any) -> Environment:
    """A new environment of the kind registered under `name`."""
    return lookup(name).environment(**options)
