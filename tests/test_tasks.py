"""Tasks come in shuffled passes that depend on seed and iteration alone."""

from __future__ import annotations

from collections import Counter

import pytest

from envs.base import Task
from gigpo_mega.errors import UserError
from gigpo_mega.tasks import TaskStream, panel

TASKS = tuple(Task(f"game-{i}", "pick", f"{i}.tw-pddl") for i in range(10))


def test_a_pass_takes_every_task_once() -> None:
    stream = TaskStream(TASKS, seed=1)
    drawn = [task.id for step in range(5) for task in stream.draw(step, 4)]
    assert Counter(drawn) == dict.fromkeys((t.id for t in TASKS), 2)


def test_draws_depend_on_nothing_but_seed_and_iteration() -> None:
    late = TaskStream(TASKS, seed=1).draw(7, 4)
    stream = TaskStream(TASKS, seed=1)
    assert [stream.draw(step, 4) for step in range(8)][7] == late
    assert TaskStream(TASKS, seed=2).draw(7, 4) != late


@pytest.mark.parametrize(
    ("count", "ids"), [(5, [0, 2, 4, 6, 8]), (10, list(range(10))), (12, [*range(10), 0, 1])]
)
def test_panel_is_spread_over_the_split(count: int, ids: list[int]) -> None:
    assert [task.id for task in panel(TASKS, count)] == [f"game-{i}" for i in ids]


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.split"):
        panel((), 4)
