"""Which tasks an iteration trains on: a function of seed and iteration alone, so resuming needs no cursor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from envs.agent import find_agent
from envs.base import EnvError, Task
from envs.dialogue import choose
from envs.registry import check_options, lookup
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError

_REPLACING = 1  # after the seed and the iteration, so that no pass over the tasks has this order


class TaskStream:
    """Draws from `tasks` in shuffled passes: every task once before any comes again."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        self._tasks, self._seed = tuple(tasks), seed

    def sequence(self, iteration: int, count: int) -> Iterator[Task]:
        """The `count` tasks of `iteration`, then without end those that may replace them.

        A function of these alone, without a trace in other iterations. The replacements are tasks that
        `iteration` does not have, while there are such, each once before any comes again.
        """
        own = self.draw(iteration, count)
        yield from own
        seed = [self._seed, iteration, _REPLACING]
        order = [self._tasks[i] for i in np.random.default_rng(seed).permutation(len(self._tasks))]
        taken = set(own)
        yield from cycle([task for task in order if task not in taken] or order)

    def draw(self, iteration: int, count: int) -> tuple[Task, ...]:
        """The `count` tasks of `iteration`."""
        size = len(self._tasks)
        positions = range(iteration * count, (iteration + 1) * count)
        epochs = {position // size for position in positions}
        orders = {e: np.random.default_rng([self._seed, e]).permutation(size) for e in epochs}
        return tuple(self._tasks[orders[position // size][position % size]] for position in positions)


def panel(tasks: Sequence[Task], count: int) -> tuple[Task, ...]:
    """A fixed panel of `count` tasks spread evenly over `tasks`, repeated if there are fewer."""
    if not tasks:
        raise UserError("evaluation.split: the split has no tasks; check environment.tasks")
    if count <= len(tasks):
        return tuple(tasks[i * len(tasks) // count] for i in range(count))
    return tuple(tasks[i % len(tasks)] for i in range(count))


def rest(tasks: Sequence[Task], count: int) -> tuple[Task, ...]:
    """The tasks that the panel of `count` leaves out; raises UserError if there are none."""
    played = {task.id for task in panel(tasks, count)}
    left = tuple(task for task in tasks if task.id not in played)
    if not left:
        raise UserError(
            f"evaluation.rest: the panel of {count} episodes plays all {len(tasks)} tasks of the split; "
            "set a smaller evaluation.episodes, or make more tasks"
        )
    return left


@dataclass(frozen=True, slots=True)
class Tasks:
    """What a run plays."""

    training: tuple[Task, ...]
    held_out: tuple[Task, ...]  # the fixed panel


def load_tasks(cfg: Config) -> Tasks:
    """All training tasks and the fixed held-out panel; raises EnvError or UserError if there are none."""
    name = cfg.environment.name
    kind = lookup(name)
    check_options(_played(cfg), environment_options(cfg), "environment.options", name)
    check_options(kind.tasks, cfg.environment.tasks, "environment.tasks", name)
    choose(kind, cfg.prompt.dialogue)
    source = kind.tasks(**cfg.environment.tasks)
    training = tuple(source.tasks(cfg.environment.split))
    if not training:
        raise UserError(f"environment.split {cfg.environment.split}: no tasks there; check environment.tasks")
    choice = rest if cfg.evaluation.rest else panel
    try:
        unseen = source.tasks(cfg.evaluation.split)
    except EnvError as error:  # a source knows of one split alone
        raise EnvError(str(error).replace("environment.split", "evaluation.split")) from None
    return Tasks(training, choice(unseen, cfg.evaluation.episodes))


def environment_options(cfg: Config) -> dict[str, Any]:
    """`environment.options`, and `environment.max_steps` for an environment that has such an argument.

    With `rollout.agent` they are the agent's.
    """
    accepted = inspect.signature(_played(cfg)).parameters
    limit = {"max_steps": cfg.environment.max_steps} if "max_steps" in accepted else {}
    return cfg.environment.options | limit


def _played(cfg: Config) -> Callable[..., object]:
    """What the options are for: an agent, but for its task and connection, or what makes an environment."""
    if cfg.rollout.agent is not None:
        return partial(find_agent(cfg.rollout.agent), None, None)
    return lookup(cfg.environment.name).environment
