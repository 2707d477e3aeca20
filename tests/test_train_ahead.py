"""Whole runs whose rollouts run ahead of the learner, by the real engine: on two ranks, killed, replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gigpo_mega.storage.journal import Journal
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.types import Group
from tests.programs import TORCHRUN, run_python
from tests.telemetry.test_metric_names import unnamed

pytestmark = pytest.mark.engine
FAULTY = str(Path(__file__).with_name("faulty_train.py"))
AHEAD = ["--rollout.max_staleness", "1", "--objective.old_logprob", "engine", "--iterations", "4",
         "--checkpoint.groups_gib", "1"]  # fmt: skip


def played(output: Path) -> list[tuple[Group, ...]]:
    """The groups of every iteration, all of which are complete and sampled by weights of the right age."""
    journal = Journal(output / "groups")
    assert journal.iterations() == [0, 1, 2, 3]
    found = [journal.read(iteration) for iteration in journal.iterations()]
    for iteration, groups in enumerate(found):
        assert [len(group.trajectories) for group in groups] == [4, 4]
        assert versions(groups) <= {iteration - 1, iteration}
    assert [row["iteration"] for row in read_rows(output / "metrics.jsonl")] == [0, 1, 2, 3]
    return found


def versions(groups: tuple[Group, ...]) -> set[int]:
    steps = [step for group in groups for t in group.trajectories for step in t.steps]
    return set(np.concatenate([step.versions for step in steps]).tolist())


def test_two_ranks_learn_from_groups_begun_with_older_weights(arguments: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = run_python(
        *TORCHRUN, "2", FAULTY, "never", "0", *arguments, *AHEAD, "--output", str(output),
        "--evaluation.every", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    groups, rows = played(output), read_rows(output / "metrics.jsonl")
    # Before iterations 0 and 3 the panel is played, and nothing else.
    assert [versions(of) for of in (groups[0], groups[3])] == [{0}, {3}]
    for row in rows:
        assert unnamed(row.keys() - {"iteration"}) == []
        shares = row["staleness/share_0"], row["staleness/share_1"]
        assert sum(shares) == pytest.approx(1)
        assert row["staleness/mean"] == pytest.approx(shares[1])
        assert ("engine/logprob_gap_mean" in row) == (shares[0] > 0)
        assert row.get("engine/logprob_gap_mean", 0) < 1e-5
    assert sum(row["staleness/share_1"] for row in rows) > 0
    assert max(row.get("staleness/logprob_gap_1", 0) for row in rows) > 1e-3


def test_a_killed_run_goes_on_with_the_groups_that_it_had(arguments: list[str], tmp_path: Path) -> None:
    output, whole = tmp_path / "run", [*arguments, *AHEAD, "--output", str(tmp_path / "run")]
    killed = run_python(FAULTY, "update", "1", *whole, "--checkpoint.every", "2")
    assert killed.returncode == -9, killed.stderr[-3000:]
    before = {path.name: path.stat().st_mtime_ns for path in (output / "groups/000001").glob("*.npz")}
    done = run_python(FAULTY, "never", "0", *whole, "--checkpoint.every", "2", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    played(output)
    assert {path.name: path.stat().st_mtime_ns for path in (output / "groups/000001").glob("*.npz")} == before
    again = tmp_path / "again"
    done = run_python("-m", "gigpo_mega", "replay", str(output), "--output", str(again))
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (load_file(run / "policy" / "model.safetensors") for run in (output, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
