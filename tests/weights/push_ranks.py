"""Pushes a policy from every rank of a launch, tensor 2 x pipeline 2, over each transport.

    torchrun --nproc-per-node 4 tests/weights/push_ranks.py HF FOLDER URL...

Rank 0 prints a line for each transport: its metrics, and the checksums that the servers report. The policy
changes before each push and is saved as FOLDER/<transport>.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from gigpo_mega.config import Config, ParallelConfig, WeightsConfig
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.model import build_model
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights import live
from gigpo_mega.weights.push import WeightPush
from gigpo_mega.weights.transport.receivers import Receivers


def main() -> None:
    """Every transport, each with its own version."""
    hf, folder, urls = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    cfg, shape = Config(parallel=ParallelConfig(tensor=2, pipeline=2)), ModelShape.from_hf(hf)
    layout = parallel.initialize(cfg.parallel, seed=0)
    policy = build_model(shape, cfg, empty=True)
    live.load(policy, shape, layout, hf)
    for version, transport in enumerate(("tensor", "broadcast", "disk"), start=21):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.25)
        live.save(policy, shape, layout, hf, folder / transport)
        weights = live.export(policy, shape, layout)
        if layout.leader:
            push = WeightPush(WeightsConfig(transport=transport), shape, urls, folder / "weights")
            metrics = push.push(weights, version).metrics
            answers = Receivers(urls).post("/weights_checker", {"action": "checksum"})
            held = [[rank["checksums"] for rank in answer["ranks"]] for answer in answers]
            row = {"transport": transport, "metrics": metrics, "held": held}
            sys.stdout.write("RESULT " + json.dumps(row) + "\n")
        else:
            for _ in weights:
                pass
        dist.barrier()
    parallel.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
