"""How the quickstart starts, from any folder and after a start that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gigpo_mega import quickstart
from gigpo_mega import train as training
from gigpo_mega.config import Config
from gigpo_mega.planning.memory import whole
from gigpo_mega.shape import ModelShape
from gigpo_mega.telemetry.report.curve import reference

ROOT = Path(__file__).parents[1]


class FakeTraining(Exception):
    """Raised in place of training, with the configuration that it was given."""


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(cfg: Config) -> None:
        raise FakeTraining(cfg)

    monkeypatch.setattr(quickstart, "train", train)


def started(output: Path) -> Config:
    with pytest.raises(FakeTraining) as caught:
        quickstart.run(["--output", str(output)])
    return caught.value.args[0]


def test_it_continues_a_run_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert started(tmp_path).resume == "auto"
    assert f"resuming {tmp_path}; delete it to start over" in capsys.readouterr().out


def test_a_start_that_failed_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").touch()
    assert started(tmp_path).resume == "auto"
    assert capsys.readouterr().out == ""


def test_the_curves_of_grpo_are_put_beside_a_run_of_the_same_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = tmp_path / "curves.json"
    curves.write_text("{}")
    monkeypatch.setattr(quickstart, "CURVES", curves)
    started(tmp_path / "same")
    assert (tmp_path / "same/reference.json").read_text() == "{}"
    with pytest.raises(FakeTraining):
        quickstart.run(["--output", str(tmp_path / "other"), "--environment.max_steps", "9"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("words", ["--coldstart --iterations 1", "--iterations 1 --coldstart"])
def test_coldstart_may_stand_anywhere(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []
    monkeypatch.setattr(quickstart, "make_policy", made.append)
    quickstart.main(words.split())
    assert made == [["--iterations", "1"]]


PANELS = {0: (0.25, 0.05), 4: (0.75, 0.04)}  # iteration: success and its standard error


@pytest.mark.parametrize(("played", "expected"), [
    ((0, 4), "held-out panel, 24 games: success 25.0% (+- 5.0) before, 75.0% (+- 4.0) after"),
    ((4,), "held-out panel, 24 games: success 75.0% (+- 4.0) after"),
])  # fmt: skip
@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_ends_with_its_result(
    rank: int, played: tuple[int, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fake(cfg: Config) -> None:
        for iteration in played:
            success, error = PANELS[iteration]
            record = {"episodes": 24, "success": success, "standard_error": error}
            (cfg.output / f"evaluation_{iteration:06d}.json").write_text(json.dumps(record))
        (cfg.output / "report.html").touch()

    monkeypatch.setattr(training, "train", fake)
    monkeypatch.setenv("RANK", str(rank))
    training.main(["--output", str(tmp_path), "--iterations", "4"])
    assert capsys.readouterr().out.splitlines() == (
        [] if rank else [expected, f"report: {tmp_path / 'report.html'}"]
    )
    monkeypatch.setattr(quickstart, "train", fake)
    (tmp_path / "policy").mkdir()
    quickstart.run(["--output", str(tmp_path), "--iterations", "4"])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        expected, f"report: {tmp_path / 'report.html'}", f"policy: {tmp_path / 'policy'}"
    ]  # fmt: skip


def test_the_curves_that_are_shipped_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "docs/benchmarks/quickstart_grpo.json").read_text())
    assert (record["config"], record["overrides"]) == (
        "configs/quickstart.yaml", ["--advantage.estimator", "grpo"],
    )  # fmt: skip
    assert json.loads(quickstart.CURVES.read_text()) == reference(record)


def test_its_policy_is_small() -> None:
    assert f"{whole(ModelShape.from_hf(quickstart.POLICY)) / 1e6:.1f}" == "0.4"  # million parameters


def test_it_finds_its_policy_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert started(tmp_path).model.path == Path("configs/quickstart_policy")
    monkeypatch.chdir(tmp_path)
    path = started(tmp_path).model.path
    assert path is not None
    assert (path / "config.json").is_file()
