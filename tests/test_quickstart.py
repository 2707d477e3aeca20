"""How the quickstart starts, from any folder and after a start that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gigpo_mega import quickstart
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


def test_the_curves_that_are_shipped_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "docs/benchmarks/quickstart_grpo.json").read_text())
    assert (record["config"], record["overrides"]) == (
        "configs/quickstart.yaml", ["--advantage.estimator", "grpo"],
    )  # fmt: skip
    assert json.loads(quickstart.CURVES.read_text()) == reference(record)


def test_its_policy_is_small() -> None:
    assert f"{whole(ModelShape.from_hf(quickstart.POLICY)) / 1e6:.1f}" == "0.4"  # million parameters


def test_it_finds_its_policy_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(tmp_path).model.path == Path("configs/quickstart_policy")
    monkeypatch.chdir(tmp_path)
    path = started(tmp_path).model.path
    assert path is not None
    assert (path / "config.json").is_file()
