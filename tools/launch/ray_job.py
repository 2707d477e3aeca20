"""A run on a Ray cluster: one torchrun agent on each of `--nodes` machines, all started and ended together.

    ray job submit -- python $PWD/tools/launch/ray_job.py --nodes 2 configs/alfworld/qwen2.5-7b-2nodes.yaml

Ray finds the machines, reserves their GPUs and gives the agents the address of the first machine;
tools/launch/torchrun.sh does the rest. It must be on a disk that all machines share, as must `output` and
`model.path`. All other arguments go to gigpo_mega.train.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gigpo_mega.arguments import COUNT, PORT, number
from gigpo_mega.errors import UserError
from gigpo_mega.program import run_main

SCRIPT = Path(__file__).with_name("torchrun.sh")
FORWARDED = re.compile(
    "INTERFACE|PROCESSES|SHUTDOWN_TIMEOUT|PYTHON|MODULE|OMP_NUM_THREADS|(NCCL|GLOO)_.*"
)  # to the machines


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the status of the first agent that failed, 0 if none did; UserError if machines are missing."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--nodes", type=COUNT, default=1)
    parser.add_argument("--gpus-per-node", type=COUNT, default=8)
    parser.add_argument("--cpus-per-node", type=COUNT, default=16)
    parser.add_argument("--port", type=PORT, default=29500, help="free TCP port of the first machine")
    parser.add_argument("--timeout", type=number(float), default=600.0, help="seconds to wait for machines")
    given, rest = parser.parse_known_args(argv)
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util import get_node_ip_address  # pyright: ignore[reportMissingImports]
        from ray.util.placement_group import placement_group  # pyright: ignore[reportMissingImports]
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"ray is not installed here ({error}); requirements/gpu-extras.lock has it") from None
    ray.init()
    bundle = {"GPU": float(given.gpus_per_node), "CPU": float(given.cpus_per_node)}
    group = placement_group([bundle] * given.nodes, strategy="STRICT_SPREAD")  # a machine each
    if not group.wait(given.timeout):
        raise UserError(
            f"no {given.nodes} machines with {bundle} each within {given.timeout:g} s; see `ray status`, or "
            "change --nodes, --gpus-per-node or --cpus-per-node"
        )

    def on(node: int, **resources: float) -> dict[str, object]:
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
        return {"scheduling_strategy": place, "num_cpus": 0, **resources}

    head = ray.get(ray.remote(get_node_ip_address).options(**on(0)).remote())
    environment = {name: value for name, value in os.environ.items() if FORWARDED.fullmatch(name)}
    environment |= {"NODES": str(given.nodes), "HEAD": head, "PORT": str(given.port)}
    started = [
        ray.remote(agent)
        .options(max_retries=0, **on(node, num_cpus=bundle["CPU"], num_gpus=bundle["GPU"]))
        .remote({**environment, "NODE": str(node)}, rest)
        for node in range(given.nodes)
    ]
    return first_failure(ray, started)


def agent(environment: dict[str, str], arguments: Sequence[str]) -> int:
    """Run torchrun.sh on this machine and return its status; its ranks end when this task ends."""
    process = subprocess.Popen(
        [str(SCRIPT), *arguments], env={**os.environ, **environment}, start_new_session=True
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


def first_failure(ray: Any, running: list[Any]) -> int:
    """Wait for all agents; if one fails, stop the others, which would wait for it."""
    while running:
        done, running = ray.wait(running)
        if status := ray.get(done[0]):
            for other in running:
                ray.cancel(other)
            return int(status)
    return 0


if __name__ == "__main__":
    run_main(main)
