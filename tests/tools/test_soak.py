"""The audit of a soak finds what must not happen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.base import Task
from gigpo_mega.storage.journal import Journal
from gigpo_mega.types import Group, Trajectory
from tests.tiny import random_steps
from tools.bench.soak import GROUPS, SIZE, Count, _audit


def collection() -> list[list[Group]]:
    """Two iterations of complete groups; each episode has a name of its own."""
    names = (f"{number:012x}" for number in range(1000))

    def episode(task: Task, version: int) -> Trajectory:
        name = next(names)
        steps = tuple(
            replace(
                step,
                observation=f"a door [{name}]",
                versions=np.full_like(step.response_ids, version),
                next_anchor=b"n" * 16,
            )
            for step in random_steps(2, seed=0)
        )
        return Trajectory(task, steps, 0.0, False, "failure")

    def group(iteration: int, number: int) -> Group:
        task = Task(f"{iteration}-{number}", "pick", "x")
        return Group(task, tuple(episode(task, iteration) for _ in range(SIZE)))

    return [[group(iteration, number) for number in range(GROUPS)] for iteration in range(2)]


def audited(
    folder: Path, iterations: list[list[Group]], rows: list[int], unknown: str = ""
) -> dict[str, int]:
    """What is wrong with a journal of `iterations` beside metrics of `rows`; nobody ended `unknown`."""
    journal, ledger = Journal(folder / "run" / "groups"), folder / "ledger"
    ledger.mkdir()
    names = {
        s.observation[-13:-1]
        for groups in iterations
        for g in groups
        for t in g.trajectories
        for s in t.steps
    }
    (ledger / "1").write_text("".join(f"{name} reset\n{name} done\n" for name in names - {unknown}))
    for iteration, groups in enumerate(iterations):
        for number, group in enumerate(groups):
            journal.keep(iteration, number, group)
        journal.finish(iteration)
    lines = "".join(json.dumps({"iteration": iteration}) + "\n" for iteration in rows)
    (folder / "run" / "metrics.jsonl").write_text(lines)
    return {what: count for what, count in _audit(folder / "run", ledger, Count())["wrong"].items() if count}


def test_a_whole_journal_is_right(tmp_path: Path) -> None:
    assert audited(tmp_path, collection(), [0, 1]) == {}


def test_an_episode_that_no_environment_ended(tmp_path: Path) -> None:
    wrong = audited(tmp_path, collection(), [0, 1], unknown=f"{3:012x}")
    assert wrong == {"episodes that no environment ended": 1}


def test_an_iteration_recorded_twice(tmp_path: Path) -> None:
    assert audited(tmp_path, collection(), [0, 0, 1]) == {"iterations not recorded once": 2}


@pytest.mark.parametrize(("what", "count"), [
    ("episodes counted twice", SIZE), ("groups that are not whole", 1),
    ("iterations with too few or too many groups", 1), ("episodes of several tries", 1),
    ("steps of other weights", 1),
])  # fmt: skip
def test_groups_that_are_not_as_they_were_played(what: str, count: int, tmp_path: Path) -> None:
    first, second = collection()
    episode, *others = second[0].trajectories
    one, two = episode.steps
    match what:
        case "episodes counted twice":
            moved = [
                replace(t, steps=tuple(replace(s, versions=s.versions + 1) for s in t.steps))
                for t in first[0].trajectories
            ]
            second[0] = replace(second[0], trajectories=tuple(moved))
        case "groups that are not whole":
            second[0] = replace(second[0], trajectories=tuple(others))
        case "iterations with too few or too many groups":
            second.pop()
        case "episodes of several tries":
            mixed = replace(
                episode, steps=(one, replace(two, observation=first[0].trajectories[0].steps[0].observation))
            )
            second[0] = replace(second[0], trajectories=(mixed, *others))
        case _:
            stale = replace(episode, steps=(one, replace(two, versions=two.versions - 1)))
            second[0] = replace(second[0], trajectories=(stale, *others))
    found = audited(tmp_path, [first, second], [0, 1])
    assert found[what] == count
    assert set(found) <= {what, "episodes counted twice"}
