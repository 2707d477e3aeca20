"""Tasks come in shuffled passes that depend on seed and iteration alone."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from envs.base import EnvError, Task
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.tasks import TaskStream, load_tasks, panel, rest

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


def replacements(stream: TaskStream, iteration: int, count: int, number: int) -> list[Task]:
    """The first `number` tasks after the `count` of `iteration`."""
    tasks = list(islice(stream.sequence(iteration, count), count + number))
    assert tuple(tasks[:count]) == stream.draw(iteration, count)
    return tasks[count:]


def test_replacements_depend_on_seed_iteration_and_number_alone_and_change_no_draw() -> None:
    stream = TaskStream(TASKS, seed=1)
    before = [stream.draw(step, 4) for step in range(8)]
    spare = [replacements(stream, step, 4, 6) for step in range(8)]
    assert [stream.draw(step, 4) for step in range(8)] == before
    late = TaskStream(TASKS, seed=1)
    assert replacements(late, 5, 4, 6) == spare[5]  # whatever was asked before
    assert len({tuple(tasks) for tasks in spare}) == 8
    assert len({tuple(replacements(stream, step, 0, 6)) for step in range(8)}) == 8  # of the same tasks
    assert replacements(TaskStream(TASKS, seed=2), 5, 4, 6) != spare[5]


def test_replacements_are_other_tasks_than_the_iteration_s_while_there_are_such() -> None:
    stream = TaskStream(TASKS, seed=1)
    for step in range(20):
        own = set(stream.draw(step, 4))
        *spare, again = replacements(stream, step, 4, 10 - len(own) + 1)
        assert len(own | set(spare)) == 10
        assert again == spare[0]
    assert set(replacements(stream, 0, 10, 3)) < set(TASKS)  # an iteration of all tasks: some come again


@pytest.mark.parametrize(
    ("count", "ids"), [(5, [0, 2, 4, 6, 8]), (10, list(range(10))), (12, [*range(10), 0, 1])]
)
def test_panel_is_spread_over_the_split(count: int, ids: list[int]) -> None:
    assert [task.id for task in panel(TASKS, count)] == [f"game-{i}" for i in ids]


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.split"):
        panel((), 4)


@pytest.mark.parametrize(("count", "ids"), [(5, [1, 3, 5, 7, 9]), (6, [2, 4, 7, 9]), (9, [9])])
def test_the_rest_is_what_the_panel_leaves_out(count: int, ids: list[int]) -> None:
    assert [task.id for task in rest(TASKS, count)] == [f"game-{i}" for i in ids]


@pytest.mark.parametrize("count", [10, 12])
def test_a_panel_of_the_whole_split_leaves_no_rest(count: int) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.rest: .* {count} episodes plays all 10 tasks"):
        rest(TASKS, count)


@pytest.mark.parametrize("field", ["environment.split", "evaluation.split"])
def test_the_field_of_an_unknown_split_is_named(field: str) -> None:
    tasks = ["--environment.name", "sokoban", "--environment.tasks", "{train: 2, test: 2}",
             "--evaluation.split", "test"]  # fmt: skip
    with pytest.raises(EnvError, match=rf"^{field}: unknown split 'valid'; known: train, test$"):
        load_tasks(load_config([*tasks, f"--{field}", "valid"], ""))
