"""Which tasks an iteration trains on: a function of seed and iteration alone, so resuming needs no cursor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.base import Task, check_options, lookup
from envs.dialogue import choose
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError


class TaskStream:
    """Draws from `tasks` in shuffled passes: every task once before any comes again."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        self._tasks, self._seed = tuple(tasks), seed

    def draw(self, step: int, count: int) -> tuple[Task, ...]:
        """The `count` tasks of iteration `step`."""
        places = range(step * count, (step + 1) * count)
        return tuple(self._tasks[self._order(p // len(self._tasks))[p % len(self._tasks)]] for p in places)

    def _order(self, epoch: int) -> list[int]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._tasks)).tolist()


def panel(tasks: Sequence[Task], count: int) -> tuple[Task, ...]:
    """A fixed panel of `count` tasks spread evenly over `tasks`, repeating where there are fewer."""
    if not tasks:
        raise UserError("evaluation.split: the split has no tasks; check environment.tasks")
    if count <= len(tasks):
        return tuple(tasks[i * len(tasks) // count] for i in range(count))
    return tuple(tasks[i % len(tasks)] for i in range(count))


def load_tasks(cfg: Config) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """All training tasks and the fixed held-out panel; EnvironmentError or UserError where there are none."""
    kind = lookup(cfg.environment.name)
    check_options(kind.environment, cfg.environment.options, "environment.options")
    check_options(kind.tasks, cfg.environment.tasks, "environment.tasks")
    choose(kind, cfg.environment.dialogue)
    source = kind.tasks(**cfg.environment.tasks)
    training = tuple(source.tasks(cfg.environment.split))
    if not training:
        raise UserError(f"environment.split {cfg.environment.split}: no tasks there; check environment.tasks")
    return training, panel(source.tasks(cfg.evaluation.split), cfg.evaluation.episodes)
