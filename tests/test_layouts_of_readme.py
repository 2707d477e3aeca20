"""The lines of README.md on parallel layouts run as they stand, with what is shipped; here on fewer games."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gigpo_mega.telemetry.metrics import read_rows
from tests.programs import ROOT, TORCHRUN, run_python

SMALL = (
    "--iterations", "1", "--rollout.groups", "2", "--rollout.group_size", "2", "--environment.max_steps", "3",
    "--environment.tasks.generate.games", "{train: 4, valid_unseen: 2}", "--evaluation.episodes", "2",
    "--coldstart.games", "4", "--coldstart.updates", "2", "--batch.skip_zero", "false",
)  # fmt: skip


def layout_lines() -> list[str]:
    """The lines of the code block under "Layouts"."""
    found = re.search(r"- \*\*Layouts\*\*.*?```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    return [" ".join(line.split()) for line in found[1].strip().replace("\\\n", " ").splitlines()]


def run(line: str, folder: Path) -> None:
    """A line as a user types it, made small by options that follow."""
    words = shlex.split(line)
    program = {"gigpo-mega": ("-m", "gigpo_mega"), "torchrun": TORCHRUN[:-1]}[words[0]]
    done = run_python(*program, *words[1:], *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.engine
def test_the_lines_on_layouts_run_as_they_stand(tmp_path: Path) -> None:
    lines = layout_lines()
    assert ["--parallel.pipeline 2" in line for line in lines] == [False, False, True]
    for line in lines:
        run(line, tmp_path)
    for name, processes in (("tp2", 2), ("tp2pp2", 4)):
        (row,) = read_rows(tmp_path / "runs" / name / "metrics.jsonl")
        assert row["update/rows"] > 0
        assert row["engine/logprob_gap_mean"] < 1e-5
        (start,) = read_rows(tmp_path / "runs" / name / "provenance.jsonl")
        assert (start["iteration"], start["processes"], start["stack"]) == (0, processes, "cpu")
