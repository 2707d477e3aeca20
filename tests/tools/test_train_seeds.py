"""tools/train_seeds.py on runs that are complete, and on a program that only records its command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.tasks import load_tasks
from gigpo_mega.telemetry.report.run_folder import KIND
from tools.bench.seeds import Experiment, bench, run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SEARCH = Experiment(CONFIGS / "search" / "small.yaml", ["--iterations", "2"])
COLDSTART, PANEL = CONFIGS / "search" / "small_coldstart.yaml", CONFIGS / "rest_panel.yaml"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one complete run."""
    output = tmp_path / "0"
    output.mkdir()
    for iteration, success in (("000000", 0.5), ("000002", 1.0)):
        panel = {"success": success, "standard_error": 0.02}
        (output / f"evaluation_{iteration}.json").write_text(json.dumps(panel))
    (output / "run.json").write_text(json.dumps({"seconds": 3.0, "commit": "c"}))
    rows = [
        {"iteration": 0, "rollout/success": 0.75, "engine/logprob_gap_mean": 2e-7} | {KIND + "pick": 0.5},
        {"iteration": 1, "rollout/success": 1.0},
    ]
    (output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The options of every program that was run; each left a panel or a policy in its output."""
    ran: list[list[str]] = []

    def execute(command: list[str], **options: Any) -> None:
        ran.append(command[3:])
        cfg = load_config(command[4:], "test")
        cfg.output.mkdir(parents=True)
        (cfg.output / "policy").mkdir()
        (cfg.output / "evaluation.json").write_text(json.dumps({"success": 0.25 * len(ran)}))

    monkeypatch.setattr("tools.bench.seeds.subprocess", SimpleNamespace(run=execute))
    monkeypatch.setattr("tools.bench.seeds.commit", lambda: "here")
    return ran


def test_an_iteration_without_an_update_has_no_gap(runs: Path) -> None:
    record = run(SEARCH, 0, runs)
    assert (record["logprob_gap_mean"], record["training"]) == (2e-7, [0.75, 1.0])
    assert record["kinds"] == {"pick": [0.5, None]}
    assert (record["before"]["success"], record["after"]["success"]) == (0.5, 1.0)


def test_a_record_names_its_command_and_means(runs: Path) -> None:
    record = bench(SEARCH, 1, runs)
    assert {"command", "commit", "device", "load_average", "versions"} <= record.keys()
    assert record["overrides"] == ["--iterations", "2"]
    assert (record["summary"]["gain"], record["summary"]["longest_seconds"]) == (0.5, 3.0)
    assert "fresh_panel" not in record
    assert "cold_start" not in record


def test_start_and_trained_policy_play_the_fresh_panel_once(runs: Path, programs: list[list[str]]) -> None:
    experiment = Experiment(SEARCH.config, SEARCH.overrides, panel=PANEL)
    fresh = bench(experiment, 1, runs)["fresh_panel"]
    assert [options[0] for options in programs] == ["evaluate", "evaluate"]
    played = [load_config(options[1:], "test") for options in programs]
    policies = [Path("runs/search_small_coldstart/policy"), runs / "0" / "policy"]
    assert [cfg.model.path for cfg in played] == policies
    assert all(cfg.evaluation.rest for cfg in played)
    assert (fresh["before"]["success"], fresh["after"][0]["success"], fresh["gain"]) == (0.25, 0.5, 0.25)
    assert (fresh["config"], fresh["after"][0]["commit"]) == (str(PANEL), "here")
    assert bench(experiment, 1, runs)["fresh_panel"] == fresh
    assert len(programs) == 2


def test_a_cold_start_is_made_once_and_its_seconds_are_kept(
    runs: Path, programs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    experiment = Experiment(SEARCH.config, SEARCH.overrides, COLDSTART)
    start = bench(experiment, 1, runs)["cold_start"]
    assert (start["config"], start["commit"]) == (str(COLDSTART), "here")
    assert start["seconds"] >= 0
    assert bench(experiment, 1, runs)["cold_start"] == start
    assert [options[0] for options in programs] == ["coldstart"]


def test_a_run_that_was_stopped_is_no_result(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bench.seeds.subprocess", SimpleNamespace(run=lambda *words, **options: None))
    with pytest.raises(UserError, match=r"1 was stopped before it had evaluation_000002\.json"):
        run(SEARCH, 1, runs)
    assert not (runs / "1" / "run.json").exists()


@pytest.mark.parametrize(
    ("config", "panel", "sizes"),
    [
        ("search/small.yaml", "rest_panel.yaml", (320, 280)),
        ("webshop/small.yaml", "rest_panel.yaml", (320, 180)),
        ("sokoban/small.yaml", "rest_panel.yaml", (320, 320)),
        ("alfworld/small.yaml", "alfworld/small_panel.yaml", (12, 12)),
        ("quickstart.yaml", "quickstart_panel.yaml", (12, 12)),
    ],
)
def test_a_fresh_panel_shares_no_task_with_the_panel_and_none_with_training(
    config: str, panel: str, sizes: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the data of the configurations are made
    few = {"valid_unseen": 12, "train": 12} if "alfworld" in config or "quickstart" in config else {}
    options = [f"--environment.tasks.generate.games.{split}={count}" for split, count in few.items()]
    options += ["--evaluation.episodes=12"] if few else []
    layers = ([str(CONFIGS / config)], [str(CONFIGS / config), str(CONFIGS / panel)])
    first, second = (load_tasks(load_config([*files, *options], "test")) for files in layers)
    sources = [{task.source for task in tasks} for tasks in (first.held_out, second.held_out, first.training)]
    assert tuple(map(len, sources[:2])) == sizes
    assert not sources[0] & sources[1]
    assert not sources[2] & (sources[0] | sources[1])
