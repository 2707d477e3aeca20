"""Runs that start their own engines: one under torchrun, several, and those that are killed."""

from __future__ import annotations

import _ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from gigpo_mega.telemetry.metrics import read_rows
from tests.programs import COLD_ENGINES, TORCHRUN, run_python
from tests.tiny import write_agent

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]


def went_on(done: subprocess.CompletedProcess[str], output: Path) -> list[dict[str, Any]]:
    """The metrics of a run that ended well, all three iterations, and started one engine again."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall(r"^engine http://127\.0\.0\.1:\d+ is started again: ", done.stderr, re.M)) == 1
    rows = read_rows(output / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    return rows


@pytest.mark.parametrize(("fault", "more", "environment"), [
    ("kill engine", ("--weights.transport", "broadcast"), {}),
    ("kill rank", ("--engine.tensor", "2"), COLD_ENGINES),
])  # fmt: skip
def test_a_run_goes_on_after_its_engine_is_killed_while_it_samples(
    fault: str, more: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    """No engine is left: its episodes are played again, after a push to the one started again."""
    output = tmp_path / "run"
    done = run_python(
        str(ROOT / "tests/faulty_train.py"), fault, "1", str(ROOT / "tests/tiny.yaml"),
        "--model.path", str(write_agent(tmp_path / "agent")), "--environment.tasks.data",
        str(tmp_path / "games"), "--output", str(output), *more, more=environment,
    )  # fmt: skip
    rows = went_on(done, output)
    assert max(row["engine/logprob_gap_mean"] for row in rows) < 1e-5
    assert [row["engine/lost"] for row in rows] == [0, 0, 0]
    assert min(row["engine/requests_min"] for row in rows) > 0  # so all engines served in every iteration


def test_an_engine_starts_while_the_learner_is_made_and_ends_with_it(tmp_path: Path) -> None:
    done = run_python(
        str(ROOT / "tests/faulty_train.py"), "no learner", "0", str(ROOT / "tests/tiny.yaml"),
        "--model.path", str(write_agent(tmp_path / "agent")), "--environment.tasks.data",
        str(tmp_path / "games"), "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 2
    listened = re.search(r"error: no learner; process (\d+) listens\n$", done.stderr)
    assert listened, done.stderr[-3000:]
    assert not psutil.pid_exists(int(listened[1]))


@pytest.mark.parametrize(("program", "transport", "more"), [
    ((*TORCHRUN, "2"), "tensor", ("--parallel.tensor", "2")),  # both ranks gather again
    ((), "broadcast", ("--rollout.max_staleness", "1", "--objective.old_logprob", "engine")),
], ids=["two ranks", "ahead"])  # fmt: skip
def test_a_run_goes_on_after_an_engine_is_killed_in_the_middle_of_a_push(
    program: tuple[str, ...], transport: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    """It is started again, and both get the weights again; until then nothing is sampled by half of them."""
    output = tmp_path / "run"
    done = run_python(
        *program, str(ROOT / "tests/faulty_train.py"), "kill engine in push", "0",
        str(ROOT / "tests/tiny.yaml"), "--model.path", str(write_agent(tmp_path / "agent")),
        "--environment.tasks.data", str(tmp_path / "games"), "--output", str(output),
        "--weights.transport", transport, "--weights.bucket_mib", "1", "--engine.replicas", "2",
        "--evaluation.before", "false", *more,
    )  # fmt: skip
    rows = went_on(done, output)
    assert max(row["engine/logprob_gap_max"] for row in rows) < 1e-5
    assert max(row.get("staleness/logprob_gap_1", 0.0) for row in rows) < 0.5
    assert [row["engine/lost"] for row in rows[1:]] == [0, 0]
    served = [row["engine/requests_min"] for row in rows[1:]]
    # Ahead, all episodes of an iteration may begin at the engine that was idle, and stay there.
    assert (max(served) if more[0] == "--rollout.max_staleness" else min(served)) > 0


def workstation(folder: Path) -> dict[str, str]:
    """Variables with which a machine seems to have an NVIDIA driver; the engine is not preloaded."""
    folder.mkdir()
    (folder / "libcuda.so.1").symlink_to(_ctypes.__file__)  # any library that can be loaded
    return {"LD_LIBRARY_PATH": str(folder), "CUDA_VISIBLE_DEVICES": "0"} | COLD_ENGINES


def test_an_engine_started_under_torchrun_becomes_healthy(tmp_path: Path) -> None:
    """It must not inherit torchrun's store, at which a torch.distributed of its own would wait for ever.

    A driver alone, which this machine pretends to have, changes nothing: SGLang's kernels are not installed.
    """
    output = tmp_path / "run"
    done = run_python(
        *TORCHRUN, "2", str(ROOT / "tests/faulty_train.py"), "driver", "0", str(ROOT / "tests/tiny.yaml"),
        "--model.path", str(write_agent(tmp_path / "agent")), "--output", str(output),
        "--environment.tasks.data", str(tmp_path / "games"), "--parallel.tensor", "2", "--iterations", "2",
        "--weights.transport", "disk", more=workstation(tmp_path / "driver"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    reason = "there is an NVIDIA driver, but not SGLang's sgl_kernel package (make setup-gpu)"
    assert done.stderr.count(f"stack: cpu, {reason}\n") == done.stderr.count("stack: ") == 1
    rows = read_rows(output / "metrics.jsonl")
    assert max(row["engine/logprob_gap_mean"] for row in rows) < 1e-5
    assert "weights/push_gib" not in rows[0]  # the server starts with these weights
    size = sum(tensor.nbytes for tensor in load_file(output / "policy/model.safetensors").values())
    assert rows[1]["weights/push_gib"] * 2**30 == size
    assert 0 < rows[1]["weights/push_seconds"] < rows[1]["time/push"]
    assert 0 < rows[1]["weights/push_gib_per_s"] < rows[1]["weights/push_ceiling_gib_per_s"]
    assert [path.name for path in (output / "weights/node_0").iterdir()] == ["version_000002"]
