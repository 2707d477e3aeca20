"""A run on a Ray cluster: one torchrun agent on each of `--nodes` machines, all started and ended together.

    ray job submit -- python $PWD/tools/launch/ray_job.py --nodes 2 configs/alfworld/qwen2.5-7b-2nodes.yaml

Ray finds the machines, holds their GPUs and tells the agents where the first of them is; the rest is
tools/launch/torchrun.sh, on a disk that all machines share, as are `output` and `model.path`. All other
arguments go to gigpo_mega.train.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ray  # pyright: ignore[reportMissingImports]
from ray.util import get_node_ip_address  # pyright: ignore[reportMissingImports]
from ray.util.placement_group import placement_group  # pyright: ignore[reportMissingImports]
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # pyright: ignore[reportMissingImports]

SCRIPT = Path(__file__).with_name("torchrun.sh")
FORWARDED = re.compile("INTERFACE|PROCESSES|PYTHON|MODULE|OMP_NUM_THREADS|(NCCL|GLOO)_.*")  # to the machines


def main(argv: Sequence[str] | None = None) -> int:
    """The status of the first agent that failed, 0 where none did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--cpus-per-node", type=int, default=16)
    parser.add_argument("--port", type=int, default=29500, help="free TCP port of the first machine")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for the machines")
    arguments, rest = parser.parse_known_args(argv)
    ray.init()
    bundle = {"GPU": float(arguments.gpus_per_node), "CPU": float(arguments.cpus_per_node)}
    group = placement_group([bundle] * arguments.nodes, strategy="STRICT_SPREAD")  # a machine each
    if not group.wait(arguments.timeout):
        sys.stderr.write(
            f"error: no {arguments.nodes} machines with {bundle} each within {arguments.timeout:g} s; "
            "see `ray status`, or change --nodes, --gpus-per-node or --cpus-per-node\n"
        )
        return 2

    def on(node: int, **resources: float) -> dict[str, object]:
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
        return {"scheduling_strategy": place, "num_cpus": 0, **resources}

    head = ray.get(ray.remote(get_node_ip_address).options(**on(0)).remote())
    environment = {name: value for name, value in os.environ.items() if FORWARDED.fullmatch(name)}
    environment |= {"NODES": str(arguments.nodes), "HEAD": head, "PORT": str(arguments.port)}
    started = [
        ray.remote(agent)
        .options(max_retries=0, **on(node, num_cpus=bundle["CPU"], num_gpus=bundle["GPU"]))
        .remote({**environment, "NODE": str(node)}, rest)
        for node in range(arguments.nodes)
    ]
    return _first_failure(started)


def agent(environment: dict[str, str], arguments: Sequence[str]) -> int:
    """Run torchrun.sh on this machine; its status. The ranks end with this task, however it ends."""
    process = subprocess.Popen(
        [str(SCRIPT), *arguments], env={**os.environ, **environment}, start_new_session=True
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def _first_failure(running: list[ray.ObjectRef]) -> int:
    """Wait for all agents; where one fails, stop the others, which would wait for it."""
    while running:
        done, running = ray.wait(running)
        if status := ray.get(done[0]):
            for other in running:
                ray.cancel(other)
            return int(status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
