"""Groups come back from disk exactly as they were collected, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs.base import Task
from gigpo_mega.errors import UserError
from gigpo_mega.journal import Journal
from gigpo_mega.types import Group, RowTable, Trajectory
from tests.tiny import random_steps


def groups() -> tuple[Group, ...]:
    steps = random_steps(12, seed=5)
    task, other = Task("a", "pick", "a.game"), Task("b", "look", "b.game")
    return (
        Group(
            task,
            (Trajectory(task, steps[:4], 1.5, True, "success"), Trajectory(task, (), 0.0, False, "limit")),
        ),
        Group(other, (Trajectory(other, steps[4:], -0.25, False, "failure"),)),
    )


def test_groups_come_back_equal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(3, groups())
    assert journal.has(3)
    assert not journal.has(2)
    back, kept = journal.read(3), groups()
    for ours, theirs in zip(RowTable.from_groups(back).steps, RowTable.from_groups(kept).steps, strict=True):
        for name in ("prompt_ids", "response_ids", "logprobs"):
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("reward", "valid", "anchor", "version", "observation", "action"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert [[(t.score, t.success, t.ended_by, len(t.steps)) for t in g.trajectories] for g in back] == [
        [(1.5, True, "success", 4), (0.0, False, "limit", 0)],
        [(-0.25, False, "failure", 8)],
    ]
    assert [g.task for g in back] == [g.task for g in kept]


def test_a_truncated_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(0, groups())
    file = tmp_path / "000000.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"000000\.npz.*delete it to sample the iteration again"):
        journal.read(0)


def test_forget_and_drop_take_only_what_they_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in range(5):
        journal.write(step, groups())
    journal.forget(before=2)
    journal.drop(3)
    journal.drop(77)
    assert [step for step in range(5) if journal.has(step)] == [2, 4]


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gigpo_mega.journal.os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*free space"):
        Journal(tmp_path).write(0, groups())
    assert list(tmp_path.iterdir()) == []
