"""The benchmark of the environments: its numbers are consistent, on a few rooms."""

from __future__ import annotations

from argparse import Namespace

import pytest

from envs.base import Task
from envs.sokoban import SokobanEnvironment, SokobanTasks
from tools.bench.environments import sokoban
from tools.bench.environments.measure import memory_per_environment, play


def test_sokoban_is_measured() -> None:
    record = sokoban.bench(Namespace(rooms=6, repeats=3, seed=0))
    assert 6 <= record["steps"] <= 6 * sokoban.EPISODE
    assert record["steps_per_second"] > 0
    assert record["resets_per_second"] > 2 * record["resets_per_second_new"] > 0  # known rooms are kept
    assert 0 < record["memory_kib_per_environment"] < 100
    assert len(list(sokoban.lines(record))) == 2


def test_an_episode_ends_when_it_is_done() -> None:
    tasks: list[Task] = SokobanTasks(train=2).tasks("train")
    played = play(SokobanEnvironment(max_steps=3), [(tasks[0], ["still"] * 5), (tasks[1], ["still"] * 2)])
    assert played.counts == [3, 2]
    assert played.steps_per_second == pytest.approx(5 / sum(played.actions))


def test_memory_is_that_of_one_environment_without_what_is_shared() -> None:
    shared = bytearray(1 << 20)
    measured = memory_per_environment(lambda place: (shared, bytearray(10 * 1024)))
    assert 10 <= measured < 11
