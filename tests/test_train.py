"""The whole loop with the real engine: killed and resumed, stopped by signal, on two processes, misled.

Runs that are compared are fed the groups of one uninterrupted run, whatever the engine samples.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from gigpo_mega.config import EngineConfig
from gigpo_mega.rollout.server import SGLangServer
from gigpo_mega.telemetry.metrics import read_rows
from tests.tiny import free_port, write_agent

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


def launch(command: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A finished run of `python COMMAND ARGUMENTS`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *command, *arguments],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def run(point: str, output: Path, arguments: Sequence[str], *more: str) -> int:
    """Exit status of a run into `output` that is killed at `point` of iteration KILLED."""
    done = launch(
        [str(ROOT / "tests/faulty_train.py"), point, str(KILLED)], *arguments, "--output", str(output), *more
    )
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


def test_a_run_tells_how_much_the_prefix_cache_saved(uninterrupted: Path) -> None:
    rows = read_rows(uninterrupted / "metrics.jsonl")
    assert all(0 < row["rollout/cached_share"] < 1 for row in rows)


@pytest.mark.parametrize(("point", "every"), [("update", 2), ("checkpoint", 1), ("push", 1)])
def test_killed_run_resumes_bit_equal(
    point: str, every: int, uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted / "groups", output / "groups")
    options = ["--checkpoint.every", str(every)]
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


@pytest.mark.parametrize("tensor", [1, 2])
def test_two_processes_train_as_one(
    tensor: int, uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted / "groups", output / "groups")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = launch(
        [*torchrun, "-m", "gigpo_mega.train"], *arguments, "--output", str(output),
        "--parallel.tensor", str(tensor), "--checkpoint.every", "100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (read_rows(folder / "metrics.jsonl") for folder in (output, uninterrupted))
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss/total"] == pytest.approx(other["loss/total"], abs=1e-6)
        assert one["optimizer/grad_norm"] == pytest.approx(other["optimizer/grad_norm"], abs=1e-5)
        assert one["engine/logprob_gap_mean"] < 1e-5


@pytest.mark.parametrize("stopped_at", [0, 2])
def test_a_stopped_run_saves_and_resumes(
    stopped_at: int, uninterrupted: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    (output / "groups").mkdir(parents=True)
    for step in range(stopped_at):  # it is stopped while it samples the iteration after these
        shutil.copy(uninterrupted / "groups" / f"{step:06d}.npz", output / "groups")
    lines = ["--checkpoint.every", "100", "--output", str(output)]
    stopped = launch([str(ROOT / "tests/faulty_train.py"), "stop", str(stopped_at)], *arguments, *lines)
    assert stopped.returncode == 130, stopped.stderr[-3000:]
    saved = [path.name for path in (output / "checkpoints").glob("*")]
    assert saved == ([f"iteration_{stopped_at:06d}"] if stopped_at else [])
    shutil.copytree(uninterrupted / "groups", output / "groups", dirs_exist_ok=True)
    assert run("never", output, arguments, "--checkpoint.every", "100", "--resume") == 0
    assert same_policy(output, uninterrupted)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("skipped push", "a push was lost"), ("corrupted weights", r"engine\.max_logprob_gap")],
)
def test_wrong_weights_in_the_engine_are_caught(
    fault: str, message: str, arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    done = launch([str(ROOT / "tests/faulty_train.py"), fault, "1"], *arguments, "--output", str(output))
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (output / "groups" / "000001.npz").exists()
    assert run("never", output, arguments, "--resume") == 0
    assert len(read_rows(output / "metrics.jsonl")) == STEPS


def node(number: int, port: int, tree: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """One of two nodes of one rank each, run from a checkout of its own."""
    variables = {"NODES": "2", "NODE": str(number), "PORT": str(port), "PROCESSES": "1",
                 "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}  # fmt: skip
    return subprocess.Popen(
        [str(tree / "tools/launch/torchrun.sh"), *arguments], env=os.environ | variables, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_nodes_lose_one_and_resume(arguments: list[str], tmp_path: Path) -> None:
    trees = [tmp_path / f"node{number}" for number in (0, 1)]
    for tree in trees:
        for part in ("gigpo_mega", "kernels", "envs", "tools"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    output = tmp_path / "run"
    options = [*arguments, "--output", str(output)]

    def start(steps: int, *more: str) -> list[subprocess.Popen[str]]:
        port = free_port()
        return [node(i, port, trees[i], [*options, "--steps", str(steps), *more]) for i in (0, 1)]

    staying, lost = start(1000)
    deadline = time.monotonic() + 240
    while not (output / "checkpoints" / "iteration_000001").exists():
        assert time.monotonic() < deadline
        assert staying.poll() is None, staying.communicate()[1][-3000:]
        time.sleep(0.2)
    for process in [*(agent := psutil.Process(lost.pid)).children(recursive=True), agent]:
        process.kill()
    said = staying.communicate(timeout=120)[1]
    lost.communicate()
    assert staying.returncode != 0
    assert re.search(r"^error: another rank of this run is gone .*--resume", said, re.MULTILINE), said[-3000:]
    done = len(read_rows(output / "metrics.jsonl"))
    resumed = start(done + 1, "--resume")
    outcomes = [process.communicate(timeout=240)[1][-3000:] for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], outcomes
    assert [row["step"] for row in read_rows(output / "metrics.jsonl")] == list(range(done + 1))
