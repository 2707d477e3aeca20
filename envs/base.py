"""The environment interface: a few frozen value types and protocols.

Nothing here imports torch or gigpo_mega: environments run in light worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from envs.dialogue import Dialogue


LARGEST_REWARD = 1e30  # in size; sums and squares of rewards up to this stay finite


class EnvError(ValueError):
    """A task, file or option that an environment cannot use; the message names it and what to do."""


class EnvUnavailable(EnvError):
    """Something that an environment depends on, e.g. a server, cannot be reached now: another try may do."""


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
    admissible: tuple[str, ...] = ()  # commands accepted now; empty if any text may be an action
    instruction: str = ""  # what the episode asks for; set by reset, constant afterwards
    state: str | None = None  # canonical text of the anchor state; None means `text`


@dataclass(frozen=True, slots=True)
class Transition:
    """The result of one action."""

    observation: Observation
    reward: float  # finite, at most LARGEST_REWARD in size
    done: bool
    success: bool  # counts in the last step of an episode only, which may be environment.max_steps
    valid: bool  # False if the environment did not understand or accept the action


class Environment(Protocol):
    """A text environment; one instance plays one episode at a time and is reused for many.

    It may also have a method `close()`, which releases what it holds, such as a process or a connection, and
    is called when it is not used again.
    """

    def reset(self, task: Task) -> Observation: ...

    def step(self, action: str) -> Transition: ...


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An episode of a demonstrator: what it observed and what it did, step by step."""

    turns: tuple[tuple[Observation, str], ...]
    success: bool  # a failure is cloned only if coldstart.failures asks for it


class TaskSource(Protocol):
    """Lists the tasks of a split."""

    def tasks(self, split: str) -> Sequence[Task]: ...


_FIRST_SEED = {"train": 0, "test": 2**20}


@dataclass(frozen=True, slots=True)
class SeedTasks:
    """Tasks whose source is a seed in decimal: 0, 1, .. for `train`, 2**20 and up for `test`."""

    train: int = 1024
    test: int = 128

    def __post_init__(self) -> None:
        for name in _FIRST_SEED:
            if not 1 <= (count := getattr(self, name)) <= 2**20:
                raise EnvError(f"environment.tasks.{name}: {count} is not in 1..{2**20}; change it")

    def tasks(self, split: str) -> list[Task]:
        """The tasks of `train` or `test`; raises EnvError for another split."""
        if split not in _FIRST_SEED:
            raise EnvError(f"environment.split: unknown split {split!r}; known: train, test")
        first = _FIRST_SEED[split]
        seeds = range(first, first + getattr(self, split))
        return [Task(f"{split}/{seed}", "seed", str(seed)) for seed in seeds]


class Demonstrator(Protocol):
    """An expert that plays `task`; with probability `detour` a step is not its best action.

    `options` are the keyword arguments that the environment is constructed with.
    """

    def __call__(
        self, task: Task, *, seed: int, detour: float, max_steps: int, options: Mapping[str, Any]
    ) -> Demonstration: ...


def no_environment() -> Environment:
    """What an agent's tasks have instead of an environment; raises EnvError."""
    raise EnvError("environment.name: it has tasks and no environment; set rollout.agent, which plays them")


@dataclass(frozen=True, slots=True)
class EnvironmentKind:
    """What a run needs to know about an environment: how to construct one, and how to list its tasks.

    If an agent plays (`rollout.agent`), the environment may be left out.
    """

    environment: Callable[..., Environment] = no_environment
    tasks: Callable[..., TaskSource] = SeedTasks
    demonstrate: Demonstrator | None = None  # the expert that a cold start clones
    dialogues: Mapping[str, Dialogue] = field(default_factory=dict)  # its own, besides the generic ones
    columns: Mapping[str, str] = field(default_factory=dict)  # Task.kind -> its column in the paper's tables
