"""What an environment is to the rest of the house: a few frozen values, one protocol, one registry.

Nothing here imports torch or gigpo_mega: environments run in light worker processes.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from importlib.metadata import entry_points
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


_FIRST_SEED = {"train": 0, "test": 2**20}


@dataclass(frozen=True, slots=True)
class SeedTasks:
    """Tasks that are seeds in decimal: 0, 1, .. for `train`, and for `test` those from 2**20 on."""

    train: int = 1024
    test: int = 128

    def __post_init__(self) -> None:
        for name in _FIRST_SEED:
            if not 1 <= (count := getattr(self, name)) <= 2**20:
                raise EnvironmentError(f"environment.tasks.{name}: {count} is not in 1..{2**20}")

    def tasks(self, split: str) -> list[Task]:
        """The tasks of `train` or `test`; raises EnvironmentError for another split."""
        if split not in _FIRST_SEED:
            raise EnvironmentError(f"unknown split {split!r} of tasks that are seeds; known: train, test")
        first = _FIRST_SEED[split]
        seeds = range(first, first + getattr(self, split))
        return [Task(f"{split}/{seed}", "seed", str(seed)) for seed in seeds]


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
    tasks: Callable[..., TaskSource] = SeedTasks
    demonstrate: Demonstrator | None = None  # whom a cold start clones
    dialogues: Mapping[str, Dialogue] = field(default_factory=dict)  # its own, beside the generic ones
    columns: Mapping[str, str] = field(default_factory=dict)  # Task.kind -> its column in the paper's tables


GROUP = "gigpo_mega.environments"  # entry points under which installed packages offer theirs
_REGISTRY: dict[str, EnvironmentKind] = {}


def register(name: str, kind: EnvironmentKind | Callable[..., Environment]) -> None:
    """Make `kind`, or a factory of environments whose tasks are seeds, available under `name`.

    Holds for this process and the workers of its runs, which import the factory from where it is defined.
    Raises EnvironmentError where the name is taken.
    """
    if name in _REGISTRY or name in _addresses():
        raise EnvironmentError(f"environment {name!r} is already registered")
    _REGISTRY[name] = _as_kind(name, kind)


def lookup(name: str) -> EnvironmentKind:
    """The environment called `name`: registered here, ours, an installed package's, or `module:attribute`.

    Raises EnvironmentError naming the known ones, or saying why one can't be imported.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    where = name if ":" in name else _addresses().get(name)
    if where is None:
        known = ", ".join(sorted(_REGISTRY.keys() | _addresses().keys()))
        raise EnvironmentError(f"environment.name: unknown environment {name!r}; known: {known}")
    return _as_kind(where, _imported(where))


def address(name: str) -> str:
    """What `lookup` understands in another process: `name`, or where a factory registered here is defined.

    Raises EnvironmentError where another process cannot import that.
    """
    if name not in _REGISTRY:
        return name
    made_by = _REGISTRY[name].environment
    module, attribute = getattr(made_by, "__module__", ""), getattr(made_by, "__qualname__", "")
    if module == "__main__" or not attribute or "<" in attribute:
        raise EnvironmentError(
            f"environment.name {name}: worker processes cannot import {attribute or made_by!r} "
            f"of {module or 'nowhere'}; define it at the top of a module of its own"
        )
    return f"{module}:{attribute}"


def _addresses() -> dict[str, str]:
    """Where the environments lie that need no registering, by name."""
    here = Path(__file__).parent
    offered = {entry.name: f"{entry.module}:{entry.attr}" for entry in entry_points(group=GROUP)}
    adapters = {
        found.name: f"envs.adapters.{found.name}:KIND"
        for found in pkgutil.iter_modules([str(here / "adapters")])
        if not found.name.startswith("_")
    }
    packages = {
        found.name: f"envs.{found.name}:KIND"
        for found in pkgutil.iter_modules([str(here)])
        if found.ispkg and found.name != "adapters"
    }
    return offered | adapters | packages


def _imported(where: str) -> Any:
    module, _, attribute = where.partition(":")
    try:
        return reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise EnvironmentError(
            f"environment.name {where}: {error}; run where {module}.py lies, or set PYTHONPATH"
        ) from None


def _as_kind(name: str, found: Any) -> EnvironmentKind:
    if isinstance(found, EnvironmentKind):
        return found
    made_by: Any = found
    if not callable(found):
        raise EnvironmentError(
            f"environment.name {name} is {type(found).__name__}, not an envs.EnvironmentKind "
            "or what makes an environment"
        )
    return EnvironmentKind(made_by)


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
