"""A run's folder: who holds it, what may be resumed, and with what."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gigpo_mega.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
)
from gigpo_mega.config.load import FIELDS, load_config
from gigpo_mega.errors import UserError
from gigpo_mega.run.output import FIXED, check_resume, lock, open_output, record_start
from gigpo_mega.stack import Stack
from gigpo_mega.storage.journal import Journal
from gigpo_mega.telemetry.metrics import read_rows


def opened(cfg: Config, start: int = 0) -> bool:
    """Start the run of `cfg`, or resume it from the checkpoint of iteration `start`; whether that was so."""
    resumed, changed = check_resume(cfg)
    open_output(cfg, changed, start)
    return resumed


def config(output: Path, **changes: object) -> Config:
    return replace(Config(output=output), **changes)  # type: ignore[arg-type]


def with_history(output: Path, cfg: Config) -> Config:
    """A run that has played groups, so that it can be resumed."""
    opened(cfg)
    (output / "groups" / "000000").mkdir(parents=True)
    return replace(cfg, resume=True)


def test_each_start_is_recorded_unless_its_iterations_are_made_again(tmp_path: Path) -> None:
    for iteration, processes in ((0, 1), (4, 2), (2, 4)):
        record_start(tmp_path, iteration, Stack("cpu", "no driver"), processes)
    rows = read_rows(tmp_path / "provenance.jsonl")
    assert [(row["iteration"], row["processes"]) for row in rows] == [(0, 1), (2, 4)]
    assert {"commit", "device", "command", "versions", "stack"} <= set(rows[0])


def test_a_start_that_failed_does_not_block_the_next_try(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run")
    assert not opened(cfg)
    assert not opened(cfg)  # config.yaml is there, and nothing that was done


@pytest.mark.parametrize("done", ["metrics.jsonl", "evaluation_000000.json",
                                  "groups/000000.partial/000000.npz",
                                  "checkpoints/iteration_000001/state.json"])  # fmt: skip
def test_a_run_that_has_done_anything_is_not_started_again(done: str, tmp_path: Path) -> None:
    cfg = config(tmp_path / "run")
    opened(cfg)
    (tmp_path / "run" / done).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / done).write_text("x")
    with pytest.raises(UserError, match="holds a run already; choose another output or --resume"):
        opened(cfg)


def test_resuming_a_mistyped_output_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run to resume; check the path"):
        opened(config(tmp_path / "rnu", resume=True))
    assert not (tmp_path / "rnu").exists()
    assert not opened(config(tmp_path / "new", resume="auto"))


def test_a_resume_prints_the_difference_and_keeps_the_old_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = with_history(tmp_path, config(tmp_path))
    opened(replace(cfg, optimizer=OptimizerConfig(lr=5e-6), evaluation=EvaluationConfig(every=3)))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "resumed with optimizer.lr 5e-06 (was 1e-06)",
        "resumed with evaluation.every 3 (was 0)",
        "groups of iterations [0] were sampled before the change; they are set aside",
    ]
    old, new = (load_config([str(tmp_path / n)], "x") for n in ("config.until_000000.yaml", "config.yaml"))
    assert (old.optimizer.lr, new.optimizer.lr) == (1e-6, 5e-6)


def test_a_run_that_has_done_more_than_is_asked_for_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(config(tmp_path, iterations=40))
    (tmp_path / "evaluation_000040.json").touch()
    before = (tmp_path / "config.yaml").read_text()
    assert opened(config(tmp_path, iterations=5, resume=True), start=40)
    assert capsys.readouterr().err == "nothing to do: 40 iterations are done\n"
    assert (tmp_path / "config.yaml").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "evaluation_000040.json"]


def test_the_configuration_of_the_first_iterations_is_kept_however_often_they_are_resumed(
    tmp_path: Path,
) -> None:
    cfg = with_history(tmp_path, config(tmp_path))
    for rate in (2e-6, 3e-6):
        opened(replace(cfg, optimizer=OptimizerConfig(lr=rate)))
    old, new = (load_config([str(tmp_path / n)], "x") for n in ("config.until_000000.yaml", "config.yaml"))
    assert (old.optimizer.lr, new.optimizer.lr) == (1e-6, 3e-6)


@pytest.mark.parametrize(("changes", "kept"), [
    ({}, True),
    ({"checkpoint": CheckpointConfig(every=7), "evaluation": EvaluationConfig(every=3)}, True),
    ({"optimizer": OptimizerConfig(lr=5e-6)}, False),
    ({"rollout": RolloutConfig(temperature=0.5)}, False),
])  # fmt: skip
def test_what_other_weights_sampled_is_not_learned_from(
    changes: dict[str, object], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cfg = config(tmp_path)
    opened(cfg)
    (tmp_path / "groups").mkdir()
    for iteration in range(4):
        (tmp_path / "groups" / f"{iteration:06d}").mkdir()
        (tmp_path / "groups" / f"{iteration:06d}" / "000000.npz").write_text(str(iteration))
        (tmp_path / f"evaluation_{iteration:06d}.json").touch()
    opened(replace(cfg, resume=True, **changes), start=2)  # type: ignore[arg-type]
    journal = Journal(tmp_path / "groups")
    assert [journal.has(iteration) for iteration in range(4)] == [True, True, kept, kept]
    assert len(list(tmp_path.glob("evaluation_*.json"))) == (4 if kept else 3)  # 2 is of the checkpoint
    assert ("groups of iterations [2, 3]" in capsys.readouterr().err) is not kept
    if not kept:
        assert (tmp_path / "groups" / "000003.rejected" / "000000.npz").read_text() == "3"


@pytest.mark.parametrize("changes", [
    {"seed": 1},
    {"model": ModelConfig(path=Path("other"))},
    {"model": ModelConfig(dtype="bfloat16")},
    {"evaluation": EvaluationConfig(episodes=9)},
])  # fmt: skip
def test_what_the_done_iterations_depend_on_cannot_change(changes: dict[str, object], tmp_path: Path) -> None:
    cfg = with_history(tmp_path, config(tmp_path))
    kept = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"cannot be resumed with: the run has .*; set it back or choose"):
        opened(replace(cfg, **changes))  # type: ignore[arg-type]
    assert (tmp_path / "config.yaml").read_text() == kept


def test_the_table_of_fixed_fields_names_fields_and_is_documented() -> None:
    known = {*FIELDS, *(path.partition(".")[0] for path in FIELDS)}
    assert set(FIXED) <= known
    page = (Path(__file__).parents[2] / "docs" / "resuming.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.count("|") == 3 and "fixed:" in line]
    names = [name for row in rows for name in row.replace("`", "").strip().split(", ")]
    assert {name.removesuffix(".*") for name in names} == set(FIXED)


def test_a_file_system_without_locks_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\); choose an output on"):
        lock(tmp_path)


HOLD = """
import sys
from pathlib import Path
from gigpo_mega.run.output import lock
held = lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_on_one_output(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"in use by another run \(process {other.pid} on .*\)"):
            lock(tmp_path)
        other.kill()  # however it ends, the folder is free
    lock(tmp_path).close()
    lock(tmp_path).close()


@pytest.mark.parametrize(("kept", "given", "refused"), [
    (10.0, 0.0, True), (None, 10.0, True), (0.0, 10.0, False), (10.0, None, False), (10.0, 10.0, False),
])  # fmt: skip
def test_a_resume_does_not_delete_groups_that_were_to_be_kept(
    kept: float | None, given: float | None, refused: bool, tmp_path: Path
) -> None:
    opened(config(tmp_path, checkpoint=CheckpointConfig(groups_gib=kept)))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    again = config(tmp_path, checkpoint=CheckpointConfig(groups_gib=given), resume="auto")
    if not refused:
        assert opened(again)
        return
    with pytest.raises(UserError, match=r"^checkpoint.groups_gib \S+ would delete groups .*; give --check"):
        opened(again)
