"""tools/gpu/learn.py: how many iterations there is time for, and what its recipe is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gigpo_mega.errors import UserError
from tools import gpu_check
from tools.bench.seeds import Experiment
from tools.gpu import learn

RECIPE = Experiment(learn.CONFIGS / "smollm2-135m.yaml", (), learn.CONFIGS / "smollm2-135m_coldstart.yaml")
FAKE_TRAIN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(STATUS))
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
assert sys.argv[1] == "train" and sys.argv[-2:] == ["--resume", "auto"]
(output / "metrics.jsonl").write_text('{"iteration": 0}\\n' * ROWS)
time.sleep(SECONDS)
"""


def iterations(output: Path, monkeypatch: pytest.MonkeyPatch, **fate: int) -> int:
    """What is counted of a program in the place of a run, in the four seconds that it gets."""
    program = FAKE_TRAIN
    for name, value in ({"ROWS": 3, "STATUS": 0, "SECONDS": 60} | fate).items():
        program = program.replace(name, str(value))
    monkeypatch.setattr(learn, "_PROGRAM", (sys.executable, "-S", "-c", program))
    return learn.iterations_within(4.0, RECIPE, output)


@pytest.mark.parametrize("seconds", [60, 0])
def test_the_iterations_of_a_run_that_is_stopped_or_ends(
    seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert iterations(tmp_path, monkeypatch, SECONDS=seconds) == 3


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ({"ROWS": 0}, r"^4 s of training were not enough for an iteration; give more --minutes$"),
        ({"STATUS": 2}, r"ended with status 2$"),
    ],
)
def test_a_run_that_cannot_be_counted(
    fate: dict[str, int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=said):
        iterations(tmp_path, monkeypatch, **fate)


def test_recipe_and_cold_start_meet() -> None:
    cfg, cold = RECIPE.load(), RECIPE.load(learn.CONFIGS / "smollm2-135m_coldstart.yaml")
    assert cfg.model.path == cold.output / "policy"
    assert cfg.prompt == cold.prompt
    assert cfg.environment == cold.environment
    assert cold.model.path == learn.WEIGHTS
    part = gpu_check.learning(20, Path("out"))
    assert part.command[-4:] == ("--minutes", "20", "--output", "out")
    assert part.budget == 1800


def test_weights_that_are_missing_are_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "ROOT", tmp_path)
    with pytest.raises(
        UserError, match=r"^model.path: runs/smollm2 does not exist; python tools/make_smollm2"
    ):
        learn.learn(RECIPE, 1.0, tmp_path, tmp_path)
