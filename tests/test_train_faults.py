"""Whole runs that lose what they play with: a task, an environment, nodes of environments and of ranks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from gigpo_mega.storage.journal import Journal
from gigpo_mega.telemetry.metrics import read_rows
from tests import preloaded
from tests.programs import run_python, variables
from tests.tiny import free_port

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]
FAULTY = str(ROOT / "tests/faulty_train.py")
ITERATIONS = 3

FLAKY = """
import time
from pathlib import Path

from envs import EnvironmentKind, EnvUnavailable
from envs.alfworld import AlfworldEnvironment, task_source
from envs.alfworld.dialogue import DIALOGUES

HERE = Path(__file__).parent

def first(name):
    try:
        (HERE / name).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False

class FakeFlaky(AlfworldEnvironment):
    def reset(self, task):
        if "/train/" in task.source and not first("trial") and first("chosen"):
            (HERE / "bad").write_text(task.id)
        if (HERE / "bad").exists() and (HERE / "bad").read_text() == task.id:
            raise EnvUnavailable("the server is gone")
        return super().reset(task)

    def step(self, action):
        if (HERE / "bad").exists() and first("hung"):
            time.sleep(1000)
        return super().step(action)

KIND = EnvironmentKind(FakeFlaky, task_source, dialogues=DIALOGUES)
"""


def test_a_run_survives_a_task_that_cannot_be_played_and_an_environment_that_hangs(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "flaky.py").write_text(FLAKY)
    output = tmp_path / "run"
    done = run_python(
        FAULTY, "never", "0", *arguments, "--output", str(output),
        "--environment.name", "flaky:KIND", "--environment.step_timeout", "3", "--environment.workers", "2",
        more={"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_rows(output / "metrics.jsonl")
    assert len(rows) == ITERATIONS
    bad = (tmp_path / "bad").read_text()
    assert (
        sum(row["rollout/groups_dropped"] for row in rows)
        == done.stderr.count(f"replaced: task {bad}: ")
        >= 1
    )
    assert sum(row["rollout/episode_retries"] for row in rows) >= 3
    groups = [
        group for iteration in range(ITERATIONS) for group in Journal(output / "groups").read(iteration)
    ]
    assert [len(group.trajectories) for group in groups] == [4] * 2 * ITERATIONS
    assert bad not in {group.task.id for group in groups}


SLOW = """
import time
from pathlib import Path

import ray
from envs import EnvironmentKind
from envs.alfworld import AlfworldEnvironment, task_source
from envs.alfworld.dialogue import DIALOGUES

class FakeSlow(AlfworldEnvironment):
    def reset(self, task):
        self.training = "/train/" in task.source
        return super().reset(task)

    def step(self, action):
        if self.training:
            (Path(__file__).parent / ray.get_runtime_context().get_node_id()).touch()
            time.sleep(0.1)
        return super().step(action)

KIND = EnvironmentKind(FakeSlow, task_source, dialogues=DIALOGUES)
"""


def test_a_run_goes_on_when_a_node_with_environments_and_an_engine_is_lost(
    arguments: list[str], tmp_path: Path
) -> None:
    """Environments and engines are actors of a Ray cluster of two nodes; the second has one of each."""
    from ray.cluster_utils import Cluster

    (tmp_path / "slow.py").write_text(SLOW)
    output = tmp_path / "run"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 80 << 20})
    try:
        node = cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
        with subprocess.Popen(
            [preloaded.python(), "-m", "gigpo_mega.train", *arguments, "--output", str(output),
             "--environment.name", "slow:KIND", "--rollout.pool", "ray", "--environment.workers", "2",
             "--environment.step_timeout", "60", "--engine.url", "null", "--engine.placement", "separate",
             "--engine.replicas", "2", "--weights.transport", "broadcast"],
            env=variables(PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}", RAY_ADDRESS=str(cluster.address)),
            stderr=subprocess.PIPE, text=True,
        ) as training:  # fmt: skip
            deadline = time.monotonic() + 240
            while not (tmp_path / node.node_id).exists():  # an episode of two seconds is played there
                assert time.monotonic() < deadline
                assert training.poll() is None, training.communicate()[1][-3000:]
                time.sleep(0.02)
            cluster.remove_node(node, allow_graceful=False)
            _, said = training.communicate(timeout=240)
    finally:
        cluster.shutdown()
    assert training.returncode == 0, said[-3000:]
    rows = read_rows(output / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS))
    assert sum(row["rollout/episode_retries"] for row in rows) > 0
    assert len(re.findall(r"^engine http://[\d.:]+ is started again: ", said, re.M)) == 1
    assert max(row["engine/logprob_gap_mean"] for row in rows) < 1e-5
    assert min(row["engine/requests_min"] for row in rows[:1] + rows[-1:]) > 0  # both engines serve


def node(number: int, port: int, tree: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """One of two nodes of one rank each, run from a checkout of its own; one that resumes is preloaded."""
    ours = {"NODES": "2", "NODE": str(number), "INTERFACE": "lo", "PORT": str(port), "PROCESSES": "1"}
    cold = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    environment = variables(PYTHON=preloaded.python()) if "--resume" in arguments else cold
    return subprocess.Popen(
        [str(tree / "tools/launch/torchrun.sh"), *arguments], env=environment | ours, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_nodes_lose_one_and_resume(arguments: list[str], tmp_path: Path) -> None:
    trees = [tmp_path / f"node{number}" for number in (0, 1)]
    for tree in trees:
        for part in ("gigpo_mega", "kernels", "envs", "tools"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    output = tmp_path / "run"
    options = [*arguments, "--output", str(output)]

    def start(iterations: int, *more: str) -> list[subprocess.Popen[str]]:
        port = free_port()
        return [node(i, port, trees[i], [*options, "--iterations", str(iterations), *more]) for i in (0, 1)]

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
    assert [row["iteration"] for row in read_rows(output / "metrics.jsonl")] == list(range(done + 1))
