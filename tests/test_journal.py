"""Groups come back from disk exactly as they were collected, or not at all."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.base import Task
from gigpo_mega.errors import UserError
from gigpo_mega.storage.journal import Journal
from gigpo_mega.types import Group, RowTable, Trajectory
from tests.tiny import random_steps


def plain(value: Any) -> Any:
    """`value` with each array as its type and bytes: two that are equal are equal in every field."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if is_dataclass(value):
        return [(field.name, plain(getattr(value, field.name))) for field in fields(value)]
    return list(map(plain, value)) if isinstance(value, tuple) else value


def groups() -> tuple[Group, ...]:
    steps = tuple(
        replace(s, success=i == 3, next_anchor=bytes([i]) * 16, next_observation=f"a door \ud800 {i}")
        for i, s in enumerate(random_steps(12, seed=5))
    )
    task, other = Task("a", "pick", "a.game"), Task("b", "look", "b.game")
    return (
        Group(
            task,
            (Trajectory(task, steps[:4], 1.5, True, "success"), Trajectory(task, (), 0.0, False, "limit")),
        ),
        Group(other, (Trajectory(other, steps[4:], -0.25, False, "failure"),)),
    )


def write(journal: Journal, iteration: int) -> None:
    for number, group in enumerate(groups()):
        journal.keep(iteration, number, group)
    journal.finish(iteration)


def test_groups_come_back_equal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    write(journal, 3)
    assert journal.has(3)
    assert not journal.has(2)
    back = journal.read(3)
    assert plain(back) == plain(groups())
    assert [[(t.score, t.success, t.ended_by, len(t.steps)) for t in g.trajectories] for g in back] == [
        [(1.5, True, "success", 4), (0.0, False, "limit", 0)],
        [(-0.25, False, "failure", 8)],
    ]


def test_the_states_after_the_steps_are_columns_like_the_anchors() -> None:
    rows = RowTable.from_groups(groups())
    assert rows.next_anchor.dtype == rows.anchor.dtype
    assert rows.next_anchor[:, 0].tolist() == [i * 0x0101010101010101 for i in range(12)]
    assert rows.next_anchor[:, 1].tolist() == rows.next_anchor[:, 0].tolist()
    assert RowTable.from_groups([]).next_anchor.shape == (0, 2)


def test_a_truncated_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    write(journal, 0)
    file = tmp_path / "000000" / "000001.npz"
    file.write_bytes(file.read_bytes()[:100])
    remedy = rf"000001\.npz.*remove {tmp_path / '000000'} to sample the iteration again"
    with pytest.raises(UserError, match=remedy):
        journal.read(0)


def test_forgetting_and_setting_aside_take_only_what_they_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for iteration in range(5):
        write(journal, iteration)
    aside = journal.set_aside(3)
    journal.set_aside(77)
    journal.forget(before=5)
    assert [path.name for path in tmp_path.iterdir()] == [aside.name] == ["000003.rejected"]
    write(journal, 3)
    assert journal.has(3)
    assert journal.set_aside(3) == aside  # of two tries the later one
    assert len(list(aside.iterdir())) == 2


@pytest.mark.parametrize(
    ("limit", "before", "left"),
    [
        (0, 3, [3, 4]),
        (None, 3, [0, 1, 2, 3, 4]),
        (3.5, 5, [2, 3, 4]),
        (1, 3, [3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_a_limit_of_the_disk_takes_the_oldest_iterations_and_never_what_a_resume_needs(
    limit: float | None, before: int, left: list[int], tmp_path: Path
) -> None:
    journal = Journal(tmp_path)
    for iteration in range(5):
        write(journal, iteration)
    one = sum(file.stat().st_size for file in (tmp_path / "000000").iterdir())
    journal.forget(before, None if limit is None else limit * one)
    assert [iteration for iteration in range(5) if journal.has(iteration)] == left


def test_what_was_complete_when_a_run_was_killed_is_there_and_the_iteration_is_not(tmp_path: Path) -> None:
    first, second = groups()
    Journal(tmp_path).keep(4, 6, second)
    Journal(tmp_path).keep(4, 2, first)
    journal = Journal(tmp_path)
    assert not journal.has(4)
    assert [(number, group.task) for number, group in journal.begun(4).items()] == [
        (2, first.task), (6, second.task)
    ]  # fmt: skip
    journal.finish(4)
    assert (journal.has(4), journal.begun(4)) == (True, {})
    assert [group.task for group in journal.read(4)] == [first.task, second.task]


@pytest.mark.parametrize("forgotten", [True, False])
def test_what_was_begun_with_other_weights_is_forgotten_or_set_aside_too(
    forgotten: bool, tmp_path: Path
) -> None:
    journal, (group, _) = Journal(tmp_path), groups()
    write(journal, 1)
    journal.keep(2, 0, group)
    if forgotten:
        journal.forget(before=3)
        assert list(tmp_path.iterdir()) == []
    else:
        assert journal.set_aside_from(1) == [1, 2]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.rejected", "000002.rejected"]
    assert journal.begun(2) == {}


@pytest.mark.parametrize("remains", [
    lambda byte, at: b"",
    lambda byte, at: bytes([byte ^ 1 << at % 8]),
], ids=["lost byte", "flipped bit"])  # fmt: skip
def test_damage_anywhere_is_one_line(remains: Callable[[int, int], bytes], tmp_path: Path) -> None:
    """A flipped bit can make an archive look encrypted or of another method: zipfile has errors for that."""
    journal, (group, _) = Journal(tmp_path), groups()
    journal.keep(0, 0, group)
    journal.finish(0)
    file = tmp_path / "000000" / "000000.npz"
    whole = file.read_bytes()
    places = range(0, len(whole), 3)
    reasons: list[str] = []
    for at in places:
        file.write_bytes(whole[:at] + remains(whole[at], at) + whole[at + 1 :])
        try:
            found = journal.read(0)
        except UserError as error:
            reasons.append(str(error))
        else:  # the byte said nothing of the groups
            assert plain(found) == plain((group,)), at
    assert all("to sample the iteration again" in reason and "\n" not in reason for reason in reasons)
    assert len(reasons) > 0.7 * len(places)  # the rest are dates, rights and the like


@dataclass(frozen=True)
class Planted:
    """Makes a file when it is unpickled."""

    path: Path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_in_a_journal_are_refused_in_one_line_and_never_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    write(journal, 0)
    file, mark = tmp_path / "000000" / "000000.npz", tmp_path / "unpickled"
    planted = np.array([Planted(mark)], dtype=object)
    with np.load(file) as archive:
        columns: dict[str, Any] = dict(archive) | {"anchors": planted}
    np.savez_compressed(file, **columns)
    np.save(file.with_name("learner.npy"), planted)
    for read in (journal.read, journal.learner):
        with pytest.raises(UserError, match=r"^output: cannot read .*: Object arrays cannot be .*remove.*$"):
            read(0)
    file.write_bytes(pickle.dumps(planted))
    with pytest.raises(UserError, match=r"^output: cannot read .* pickled .*remove.*$"):
        journal.read(0)
    assert not mark.exists()
    pickle.loads(file.read_bytes())
    assert mark.exists()


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gigpo_mega.storage.files.os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*free space"):
        Journal(tmp_path).keep(0, 0, groups()[0])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert Journal(tmp_path).begun(0) == {}


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), float("-inf"), 1e200])
def test_a_reward_that_is_not_finite_is_never_kept_so_that_a_resumed_run_plays_again(
    tmp_path: Path, reward: float
) -> None:
    journal, (group, _) = Journal(tmp_path), groups()
    steps = (replace(group.trajectories[0].steps[0], reward=reward),)
    poisoned = replace(group, trajectories=(Trajectory(group.task, steps, reward, False, "failure"),))
    with pytest.raises(UserError, match=r"^task a: .* reward that is not finite .* plays the group again$"):
        journal.keep(4, 0, poisoned)
    assert journal.begun(4) == {}


def test_the_learners_logprobs_go_where_their_groups_go(tmp_path: Path) -> None:
    journal, copied = Journal(tmp_path / "a"), Journal(tmp_path / "b")
    write(journal, 0)
    assert journal.learner(0) is None
    logprobs = np.array([-0.1, np.nan, -3.0], dtype=np.float32)
    journal.keep_learner(0, logprobs)
    journal.keep_learner(0, logprobs)  # a resumed run
    found = journal.learner(0)
    assert found is not None
    assert found.tobytes() == logprobs.tobytes()
    assert len(journal.read(0)) == len(journal.numbers(0)) == 2
    copied.copy(0, journal)
    assert copied.learner(0) is None  # a replay has its own
    journal.set_aside(0)
    assert journal.learner(0) is None
