"""What a replay, or a collection, refuses before anything starts; tests/test_train.py replays a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from gigpo_mega.commands import replay, rollout
from gigpo_mega.config import CheckpointConfig, Config, OptimizerConfig, ParallelConfig
from gigpo_mega.config.load import save_config
from gigpo_mega.errors import UserError
from gigpo_mega.run.ranks import Signals
from gigpo_mega.run.replayer import Replayer
from gigpo_mega.storage.journal import Journal
from tests.test_journal import write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three iterations with all their groups."""
    source = tmp_path / "run"
    for iteration in range(3):
        write(Journal(source / "groups"), iteration)
    config = Config(iterations=3, resume="auto", checkpoint=CheckpointConfig(groups_gib=None))
    save_config(config, source / "config.yaml")
    return source


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations that were trained with."""
    seen: list[Any] = []
    monkeypatch.setattr("gigpo_mega.train.train", lambda cfg, journal: seen.append(cfg))
    return seen


def start(run: Path, *flags: str) -> None:
    replay.main([str(run), "--output", str(run.parent / "new"), *flags])


def test_a_replay_starts_afresh_elsewhere_and_keeps_no_copy_of_the_groups(
    run: Path, trained: list[Config]
) -> None:
    start(run, "--parallel.tensor", "2")
    (cfg,) = trained
    assert (cfg.output, cfg.resume, cfg.checkpoint.groups_gib) == (run.parent / "new", False, 0)
    assert (cfg.iterations, cfg.parallel.tensor) == (3, 2)


def test_a_replay_that_was_stopped_can_be_resumed(run: Path, trained: list[Config]) -> None:
    start(run, "--resume")
    assert trained[0].resume is True


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ([2], r"has groups of 2 iterations of 3; --iterations 2 replays them$"),
        ([0], r"no groups of iteration 0 any more; train with --checkpoint\.groups_gib null"),
        ([0, 1, 2], r"no groups of iteration 0 any more"),
        ([1], r"no groups of iteration 1 any more"),
    ],
)
def test_groups_that_are_not_there_are_named(
    gone: list[int], message: str, run: Path, trained: list[Config]
) -> None:
    for iteration in gone:
        shutil.rmtree(run / "groups" / f"{iteration:06d}")
    with pytest.raises(UserError, match=message):
        start(run)
    assert trained == []


def test_fewer_iterations_need_fewer_groups(run: Path, trained: list[Config]) -> None:
    shutil.rmtree(run / "groups" / "000002")
    start(run, "--iterations", "2")
    assert trained[0].iterations == 2


def test_a_run_whose_settings_changed_on_the_way_is_refused(run: Path, trained: list[Config]) -> None:
    until = run / "config.until_000001.yaml"
    save_config(Config(iterations=3, parallel=ParallelConfig(tensor=2)), until)
    start(run)  # where it computes is not what it computes
    save_config(Config(iterations=3, optimizer=OptimizerConfig(lr=1.0)), until)
    with pytest.raises(UserError, match=r"resumed with other settings \(.*optimizer\.lr.*until_000001"):
        start(run)
    assert len(trained) == 1


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.yaml; RUN stands before"):
        start(tmp_path / "nothing")


class FakeSignals:
    """No signal has come."""

    def check(self) -> None:
        pass


def test_groups_of_other_weights_than_the_iterations_are_not_learned_from(run: Path, tmp_path: Path) -> None:
    """As `gigpo-mega rollout` collects them: all with the weights of iteration 0."""
    config = Config(iterations=3, output=tmp_path / "new")
    replayer = Replayer(config, Journal(run / "groups"), 0, cast(Signals, FakeSignals()))
    assert [group.task.id for group in replayer.groups(0)] == ["a", "b"]
    with pytest.raises(UserError, match=r"groups of iteration 1 were sampled with weight versions \[0\]"):
        replayer.groups(1)
    replayer.close()


def test_what_is_copied_from_a_journal_is_equal_and_stays_there(tmp_path: Path) -> None:
    source, target = Journal(tmp_path / "a"), Journal(tmp_path / "b")
    write(source, 4)
    target.copy(4, source)
    files = [sorted((tmp_path / name / "000004").iterdir()) for name in ("a", "b")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert (target.has(4), target.begun(4)) == (True, {})
    with pytest.raises(UserError, match="cannot keep groups in"):
        target.copy(5, source)
    assert not target.has(5)


def test_a_run_cannot_be_replayed_into_itself(run: Path, trained: list[Config]) -> None:
    """With --resume and another setting its groups used to be set aside, and none was left to replay."""
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(UserError, match=r"is the run itself, which stays as it is"):
        replay.main([str(run), "--output", str(run.parent / "other" / ".." / "run"), "--resume"])
    assert (sorted(path.name for path in run.rglob("*")), trained) == (before, [])


def test_a_run_that_trains_is_no_place_for_a_collection(run: Path) -> None:
    """With another temperature its groups used to be set aside and its evaluations deleted."""
    (run / "metrics.jsonl").write_text('{"iteration": 0}\n')
    (run / "evaluation_000003.json").write_text("{}")
    before = sorted(path.name for path in run.rglob("*"))
    flags = ["--output", str(run), "--resume", "--rollout.temperature", "0.5"]
    with pytest.raises(UserError, match=r"is the folder of a run that trains"):
        rollout.main([str(run / "config.yaml"), *flags])
    assert sorted(path.name for path in run.rglob("*")) == before
