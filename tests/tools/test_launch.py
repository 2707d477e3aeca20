"""The launch scripts: two real torchrun agents as two nodes, and the commands that Slurm and Ray run."""

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

from tests import preloaded
from tests.programs import variables
from tests.tiny import free_port

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools" / "launch"
SHELL = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
CONFIG = "configs/alfworld/qwen2.5-7b-2nodes.yaml"


def environment(**more: str) -> dict[str, str]:
    """Ranks are preloaded; agents are not, as those that are killed must be the parents of theirs."""
    return variables(PYTHON=sys.executable) | more


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, str(script)], check=True)


@pytest.fixture
def nodes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are killed at the end of the test, with their ranks."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        kill(process)
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    """End the agent and its ranks at once, as if the node had lost power."""
    if process.poll() is None:
        for one in [*(agent := psutil.Process(process.pid)).children(recursive=True), agent]:
            one.kill()


def start(node: int, port: int, ranks: int, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """One of two nodes on this machine, with `ranks` ranks."""
    nodes = {"NODES": "2", "NODE": str(node), "INTERFACE": "lo"} | more
    variables = environment(PORT=str(port), PROCESSES=str(ranks), MODULE="tests.tools.launched_rank", **nodes)
    return subprocess.Popen(
        [str(LAUNCH / "torchrun.sh"), *arguments], env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.distributed
def test_two_nodes_become_one_world(nodes: list[subprocess.Popen[str]]) -> None:
    port, python, words = free_port(), preloaded.python(), ("--advantage.gamma", "0.9 5")
    nodes += [start(node, port, 2, *words, PYTHON=python) for node in (1, 0)]
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
    output = nodes[0].communicate(timeout=60)[0]
    assert nodes[0].returncode != 0
    assert re.search("Connection (closed|reset) by peer", output), output


@pytest.mark.distributed
@pytest.mark.parametrize(("patience", "saved"), [("1", False), ("30", True)])
def test_ranks_have_the_time_to_save_that_is_set(
    patience: str, saved: bool, nodes: list[subprocess.Popen[str]]
) -> None:
    nodes.append(start(0, free_port(), 1, "save", NODES="1", SHUTDOWN_TIMEOUT=patience))
    assert nodes[0].stdout is not None
    while "MET" not in nodes[0].stdout.readline():
        pass
    nodes[0].terminate()
    output = nodes[0].communicate(timeout=60)[0]
    assert ("SAVED" in output) == saved, output


# A machine with the address 10.0.0.1 on ib0, which reaches 10.0.0.2 by eth1; its own name is loopback.
FAKE_IP = """#!/bin/sh
case "$*" in
"-o route get 10.0.0.1") echo "local 10.0.0.1 dev lo src 10.0.0.1 uid 0 \\    cache <local>" ;;
"-o route get 10.0.0.2") echo "10.0.0.2 via 10.0.0.254 dev eth1 src 10.0.0.1 uid 0 \\    cache" ;;
"-o route get 10.0.0.3") echo "local 10.0.0.3 dev lo table local src 10.0.0.1 uid 0" ;;
"-o route get"*) echo "RTNETLINK answers: Network is unreachable" >&2; exit 2 ;;
"-o address show to 10.0.0.1") echo "3: ib0    inet 10.0.0.1/24 brd 10.0.0.255 scope global ib0" ;;
esac
"""
FAKE_GETENT = """#!/bin/sh
case "$2" in
gpu07) echo "127.0.1.1       STREAM gpu07" ;;
gpu08) echo "10.0.0.2        STREAM gpu08" ;;
[0-9]*) echo "$2        STREAM" ;;
*) exit 2 ;;
esac
"""
FAKE_NVIDIA_SMI = '#!/bin/sh\nfor gpu in 0 1 2 3; do echo "GPU $gpu: NVIDIA H100 (UUID: GPU-$gpu)"; done\n'
# In the place of Python with torchrun: the command line, and the variables that it would see.
FAKE_PYTHON = (
    '#!/bin/sh\nfor word in "$@"; do printf \'<%s>\' "$word"; done; echo\n'
    'echo "${GLOO_SOCKET_IFNAME:-none} ${NCCL_SOCKET_IFNAME:-none}"\n'
)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder of fake programs; it is all that launch scripts find in their PATH besides the shell's."""
    fakes = {"ip": FAKE_IP, "getent": FAKE_GETENT, "nvidia-smi": FAKE_NVIDIA_SMI, "python": FAKE_PYTHON}
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "sh", "cat", "sed", "tr", "grep", "wc", "dirname", "env", "head"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    return tmp_path


def launch(cluster: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run torchrun.sh with these variables alone."""
    given = {"PATH": str(cluster), "PYTHON": str(cluster / "python"), **variables}
    return subprocess.run(
        [str(LAUNCH / "torchrun.sh"), "a b.yaml"], env=given, capture_output=True, text=True, check=False
    )


def test_one_node_takes_its_gpus_and_no_interface(cluster: Path) -> None:
    done = launch(cluster)
    assert done.stdout.splitlines() == [
        "<-m><torch.distributed.run><--nnodes><1><--node-rank><0><--nproc-per-node><4>"
        "<--master-addr><127.0.0.1><--master-port><29500><--max-restarts><0><--shutdown-timeout><840>"
        "<-m><gigpo_mega.train><a b.yaml>",
        "none none",
    ]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("visible", "ranks"),
    [("2", 1), ("0,1,3", 3), ("GPU-0,GPU-1", 2), ("MIG-1/2/0, MIG-1/3/0", 2), ("", 1), ("-1", 1),
     ("0,1,-1,2", 2)],
)  # fmt: skip
def test_visible_gpus_are_the_ranks(visible: str, ranks: int, cluster: Path) -> None:
    assert f"<--nproc-per-node><{ranks}>" in launch(cluster, CUDA_VISIBLE_DEVICES=visible).stdout
    assert "<--nproc-per-node><8>" in launch(cluster, CUDA_VISIBLE_DEVICES=visible, PROCESSES="8").stdout


def test_a_machine_without_gpus_has_one_rank(cluster: Path) -> None:
    (cluster / "nvidia-smi").unlink()
    assert "<--nproc-per-node><1>" in launch(cluster).stdout


@pytest.mark.parametrize(
    ("variables", "interfaces"),
    [
        ({"HEAD": "10.0.0.2", "NODE": "1"}, "eth1 none"),  # by the route
        ({"HEAD": "gpu08", "NODE": "1"}, "eth1 none"),
        ({"HEAD": "10.0.0.1"}, "ib0 none"),  # this node's own address, whose route is lo
        ({"HEAD": "10.0.0.2", "INTERFACE": "bond0"}, "bond0 bond0"),
        ({"HEAD": "gpu07", "INTERFACE": "bond0"}, "bond0 bond0"),
        ({"HEAD": "10.0.0.2", "GLOO_SOCKET_IFNAME": "eth2", "NCCL_SOCKET_IFNAME": "eth3"}, "eth2 eth3"),
        ({"HEAD": "10.0.0.2", "NCCL_SOCKET_IFNAME": "eth3"}, "eth1 eth3"),
        ({"INTERFACE": "lo"}, "lo lo"),  # two nodes on one machine
    ],
)
def test_gloo_takes_the_interface_that_reaches_the_head(
    variables: dict[str, str], interfaces: str, cluster: Path
) -> None:
    done = launch(cluster, NODES="2", **variables)
    assert done.stdout.splitlines()[1:] == [interfaces], done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "HEAD 127.0.0.1 is 127.0.0.1 here, which no other of the 2 nodes reaches: give node 0's "),
        ({"HEAD": "gpu07"}, "HEAD gpu07 is 127.0.1.1 here, which no other of the 2 nodes reaches: give "),
        ({"HEAD": "10.0.0.2", "INTERFACE": "lo"}, "INTERFACE lo reaches only this node, not HEAD 10.0.0.2"),
        ({"HEAD": "10.0.0.3"}, "HEAD 10.0.0.3 is 10.0.0.3 here, which no other of the 2 nodes reaches: "),
        ({"HEAD": "gpu99"}, "HEAD gpu99 is not known on this node"),
        ({"HEAD": "10.9.9.9"}, "HEAD 10.9.9.9 is not reached: RTNETLINK answers: Network is unreachable"),
        ({"NODE": "2"}, "NODE 2 is not below NODES 2; nodes count from 0"),
        ({"NODES": "two"}, "NODES two is no whole number"),
        ({"NODE": "-1"}, "NODE -1 is no whole number"),
        ({"PROCESSES": "8.0"}, "PROCESSES 8.0 is no whole number"),
        ({"PROCESSES": "0"}, "PROCESSES 0: give at least one rank"),
        ({"PORT": "65536"}, "PORT 65536 is not in 1..65535"),
        ({"SHUTDOWN_TIMEOUT": "5m"}, "SHUTDOWN_TIMEOUT 5m is no whole number"),
    ],
)  # fmt: skip
def test_what_cannot_become_one_run_is_refused(variables: dict[str, str], said: str, cluster: Path) -> None:
    done = launch(cluster, **{"NODES": "2", **variables})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


def test_without_the_ip_program_the_interface_must_be_given(cluster: Path) -> None:
    (cluster / "ip").unlink()
    done = launch(cluster, NODES="2", HEAD="10.0.0.2")
    assert (done.returncode, done.stderr) == (
        2, "error: ip (iproute2) is not installed, which finds the way to HEAD; set INTERFACE\n"
    )  # fmt: skip
    assert launch(cluster, NODES="2", HEAD="10.0.0.2", INTERFACE="eth0").returncode == 0


def test_slurm_signals_early_enough_for_ranks_to_save() -> None:
    early = re.search(r"^#SBATCH --signal=TERM@(\d+)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    patience = re.search(r"SHUTDOWN_TIMEOUT:-(\d+)", (LAUNCH / "torchrun.sh").read_text())
    assert early
    assert patience
    assert int(early[1]) > int(patience[1]) >= 600


FAKE_SCONTROL = "#!/bin/sh\n[ \"$*\" = 'show hostnames gpu[07-08]' ] && printf 'gpu07\\ngpu08\\n'\n"
FAKE_SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do echo "srun $1"; shift; done
for node in 0 1; do SLURM_NODEID=$node PYTHON=echo "$@"; done
"""


def test_slurm_starts_one_agent_on_each_node(cluster: Path, tmp_path: Path) -> None:
    for name, text in (("scontrol", FAKE_SCONTROL), ("srun", FAKE_SRUN)):
        (cluster / name).write_text(text)
        (cluster / name).chmod(0o755)
    (cluster / "getent").write_text("#!/bin/sh\necho 10.0.0.1\n")
    variables = environment(
        PATH=f"{cluster}:{os.environ['PATH']}", SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="gpu[07-08]",
        SLURM_JOB_ID="1020304", SLURM_SUBMIT_DIR=str(ROOT), PROCESSES="8",
    )  # fmt: skip
    command = ["bash", str(LAUNCH / "slurm.sbatch"), CONFIG, "--output", "runs/a run"]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["srun --kill-on-bad-exit=1", "srun --export=ALL"]
    assert lines[2:] == [
        f"-m torch.distributed.run --nnodes 2 --node-rank {node} --nproc-per-node 8 --master-addr gpu07 "
        f"--master-port 20304 --max-restarts 0 --shutdown-timeout 840 -m gigpo_mega.train {CONFIG} "
        "--output runs/a run --resume auto"
        for node in (0, 1)
    ]


def test_a_ray_job_without_ray_is_one_line() -> None:
    script = str(LAUNCH / "ray_job.py")
    program = "import runpy, sys; sys.modules['ray'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    hidden = f"import sys; sys.argv = sys.argv[1:]; {program}"
    done, shown = (
        subprocess.run([sys.executable, "-c", hidden, script, *words], env=environment(PYTHONPATH=str(ROOT)),
                       capture_output=True, text=True, check=False)
        for words in (["--nodes", "2"], ["--help"])
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ray is not installed here (")
    assert (shown.returncode, shown.stdout[:13]) == (0, "usage: ray_jo")


@pytest.mark.distributed
def test_ray_starts_one_agent_on_each_node() -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")  # in requirements/gpu-extras.lock
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    cluster.add_node(num_cpus=1, num_gpus=1)
    try:
        done = subprocess.run(
            [sys.executable, str(LAUNCH / "ray_job.py"), "--nodes", "2", "--gpus-per-node", "1",
             "--cpus-per-node", "1", "--port", str(free_port()), "--advantage.gamma", "0.9"],
            env=environment(RAY_ADDRESS=cluster.address, PROCESSES="1", MODULE="tests.tools.launched_rank"),
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    met = re.findall(r"MET .*\]", done.stdout + done.stderr)
    said = "of 2: 1 ['--advantage.gamma', '0.9']"
    assert sorted(met) == [f"MET 0 0 0 1 {said}", f"MET 1 0 1 1 {said}"]
