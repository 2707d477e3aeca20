"""The launch scripts: two real torchrun agents as two nodes, and what Slurm and Ray make of a command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.tiny import free_port

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools" / "launch"
SHELL = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
CONFIG = "configs/alfworld/qwen2.5-7b-2nodes.yaml"


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | more


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, str(script)], check=True)


@pytest.fixture
def nodes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended with the test, ranks and all."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        kill(process)
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    """As a node that loses its power: the agent and its ranks, which are no longer asked."""
    if process.poll() is None:
        for one in [*(agent := psutil.Process(process.pid)).children(recursive=True), agent]:
            one.kill()


def start(node: int, port: int, ranks: int, *arguments: str) -> subprocess.Popen[str]:
    """One of two nodes, with `ranks` ranks."""
    variables = environment(
        NODES="2", NODE=str(node), PORT=str(port), PROCESSES=str(ranks), MODULE="tests.tools.meet"
    )
    return subprocess.Popen(
        [str(LAUNCH / "torchrun.sh"), *arguments], env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.distributed
def test_two_nodes_become_one_world(nodes: list[subprocess.Popen[str]]) -> None:
    port = free_port()
    nodes += [start(node, port, 2, "--advantage.gamma", "0.9 5") for node in (1, 0)]
    second, first = (process.communicate(timeout=120)[0] for process in nodes)
    assert [process.returncode for process in nodes] == [0, 0], first + second
    said = "of 4: 6 ['--advantage.gamma', '0.9 5']"
    assert sorted(re.findall("MET .*", first)) == [f"MET 0 0 0 1 {said}", f"MET 1 1 0 1 {said}"]
    assert sorted(re.findall("MET .*", second)) == [f"MET 2 0 1 1 {said}", f"MET 3 1 1 1 {said}"]


@pytest.mark.distributed
def test_a_lost_node_ends_the_run(nodes: list[subprocess.Popen[str]]) -> None:
    port = free_port()
    nodes += [start(node, port, 1, "wait") for node in (0, 1)]
    lost = nodes[1]
    assert lost.stdout is not None
    assert "MET" in lost.stdout.readline()
    kill(lost)
    told = nodes[0].communicate(timeout=60)[0]
    assert nodes[0].returncode != 0
    assert re.search("Connection (closed|reset) by peer", told), told


def test_a_node_beyond_the_last_is_refused() -> None:
    done = subprocess.run(
        [str(LAUNCH / "torchrun.sh")], env=environment(NODES="2", NODE="2"), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: NODE 2 is not below NODES 2; nodes count from 0\n"


FAKE_SCONTROL = "#!/bin/sh\n[ \"$*\" = 'show hostnames gpu[07-08]' ] && printf 'gpu07\\ngpu08\\n'\n"
FAKE_SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do echo "srun $1"; shift; done
for node in 0 1; do SLURM_NODEID=$node PYTHON=echo "$@"; done
"""


def test_slurm_starts_one_agent_on_each_node(tmp_path: Path) -> None:
    for name, text in (("scontrol", FAKE_SCONTROL), ("srun", FAKE_SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = environment(
        PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="gpu[07-08]",
        SLURM_JOB_ID="1020304", SLURM_SUBMIT_DIR=str(ROOT), PROCESSES="8",
    )  # fmt: skip
    command = ["bash", str(LAUNCH / "slurm.sbatch"), CONFIG, "--output", "runs/a run"]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert told[:2] == ["srun --kill-on-bad-exit=1", "srun --export=ALL"]
    assert told[2:] == [
        f"-m torch.distributed.run --nnodes 2 --node-rank {node} --nproc-per-node 8 --master-addr gpu07 "
        f"--master-port 20304 --max-restarts 0 -m gigpo_mega.train {CONFIG} --output runs/a run --resume"
        for node in (0, 1)
    ]


@pytest.mark.distributed
def test_ray_starts_one_agent_on_each_node() -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")  # in requirements/gpu.txt
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    cluster.add_node(num_cpus=1, num_gpus=1)
    try:
        done = subprocess.run(
            [sys.executable, str(LAUNCH / "ray_job.py"), "--nodes", "2", "--gpus-per-node", "1",
             "--cpus-per-node", "1", "--port", str(free_port()), "--advantage.gamma", "0.9"],
            env=environment(RAY_ADDRESS=cluster.address, PROCESSES="1", MODULE="tests.tools.meet"),
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    met = re.findall(r"MET .*\]", done.stdout + done.stderr)
    said = "of 2: 1 ['--advantage.gamma', '0.9']"
    assert sorted(met) == [f"MET 0 0 0 1 {said}", f"MET 1 0 1 1 {said}"]
