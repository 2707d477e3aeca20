"""No command breaks an ALFWorld episode, or another one in the same process."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from envs.alfworld import AlfworldEnvironment, task_source
from envs.base import Task

SAID = (
    "", " ", "a" * 100_000, "go to " * 20_000, "看", "\ud800", "\0\x1b[2J", "<action>" * 9999, "%s {0} \\",
    "{r}", "go to", "take  from ", "GO TO DESK 1", "look\nlook", "?", "(and", "help me", "inventory",
)  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    folder: Path = tmp_path_factory.mktemp("games")
    rooms = {"games": {"train": 6}, "seed": 3, "receptacles": 5, "objects": 5}
    return list(task_source(str(folder / "rooms"), generate=rooms).tasks("train"))


def test_no_command_breaks_this_or_another_episode(tasks: list[Task]) -> None:
    rng = Random(0)
    players = [AlfworldEnvironment(max_steps=30) for _ in range(3)]
    firsts = {task.id: AlfworldEnvironment().reset(task) for task in tasks}
    admissible: list[tuple[str, ...]] = [()] * len(players)
    refused = 0
    for _ in range(10_000):
        i = rng.randrange(len(players))
        if not admissible[i]:
            task = rng.choice(tasks)
            first = players[i].reset(task)
            assert first == firsts[task.id]
            admissible[i] = first.admissible
        odd = rng.random() < 0.5
        said = rng.choice(SAID) if odd else rng.choice(admissible[i])
        transition = players[i].step(said)
        assert transition.valid == (said.strip().lower() in admissible[i])
        if not transition.valid:
            refused += 1
            assert transition.observation.text == "Nothing happens."
            assert transition.observation.admissible == admissible[i]
        admissible[i] = () if transition.done else transition.observation.admissible
    assert refused > 3_000
