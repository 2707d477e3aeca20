"""Kill -9 at any point of an iteration, then --resume: nothing is lost, and the policy is the same to the
bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gigpo_mega.config import EngineConfig
from gigpo_mega.rollout.server import SGLangServer
from gigpo_mega.telemetry.metrics import read_rows
from tests.tiny import write_agent

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]
STEPS, KILLED = 3, 1


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def arguments(agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options of a small run against one real engine that all runs share."""
    folder = tmp_path_factory.mktemp("engine")
    with SGLangServer(agent, EngineConfig(), folder / "sglang.log") as server:
        yield [str(ROOT / "tests/tiny.yaml"), "--model.path", str(agent), "--engine.url", server.url,
               "--environment.tasks.data", str(folder / "games"), "--steps", str(STEPS)]  # fmt: skip


def run(point: str, output: Path, arguments: list[str], *more: str) -> int:
    """Exit status of a run into `output` that is killed at `point` of iteration KILLED."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests/faulty_train.py"), point, str(KILLED),
    *arguments,
               "--output", str(output), *more]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, -9), done.stderr[-3000:]
    return done.returncode


@pytest.fixture(scope="module")
def uninterrupted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    assert run("never", output, arguments) == 0
    return output


def same_policy(one: Path, other: Path) -> bool:
    left, right = (load_file(run / "policy" / "model.safetensors") for run in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("point", ["update", "checkpoint", "push"])
def test_killed_run_resumes_bit_equal(
    point: str, every: int, uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(
        uninterrupted / "groups", output / "groups"
    )  # the same groups, whatever the engine samples
    options = ["--checkpoint.every", str(every)]
    if point == "checkpoint" and every == 2:
        options = ["--checkpoint.every", "2"]
    assert run(point, output, arguments, *options) == -9
    assert run("never", output, arguments, *options, "--resume") == 0
    assert same_policy(output, uninterrupted)
    assert [row["step"] for row in read_rows(output / "metrics.jsonl")] == list(range(STEPS))


@pytest.mark.parametrize("point", ["rollout", "journal"])
def test_kill_while_sampling_loses_only_that_iteration(
    point: str, uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    (output / "groups").mkdir(parents=True)
    shutil.copy(uninterrupted / "groups" / "000000.npz", output / "groups")
    assert run(point, output, arguments) == -9
    kept = (output / "groups" / "000000.npz").read_bytes()
    assert not (output / "groups" / "000001.npz").exists()
    assert run("never", output, arguments, "--resume") == 0
    assert (output / "groups" / "000000.npz").read_bytes() == kept
    first, second, third = read_rows(output / "metrics.jsonl")
    assert first["loss/total"] == read_rows(uninterrupted / "metrics.jsonl")[0]["loss/total"]
    assert max(row["engine/logprob_gap_mean"] for row in (first, second, third)) < 1e-5
