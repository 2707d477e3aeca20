"""Loads and exports policies on every rank of a launch, in each layout given.

    torchrun --nproc-per-node 4 tests/weights/export_ranks.py LEARNER TENSORxPIPELINExVIRTUAL ...

LEARNER/<policy>/hf and LEARNER/<policy>/checkpoint hold the same weights. Each layout leaves what it saves
beside them; rank 0 prints one JSON line: the tensors that any rank saw otherwise than they are in the files.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async

from gigpo_mega.config import Config, ParallelConfig
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.model import Policy, build_model
from gigpo_mega.shape import ModelShape
from gigpo_mega.storage.manifest import LEARNER
from gigpo_mega.weights import live as weights
from gigpo_mega.weights.huggingface import HFReader

filesystem_async._results_queue = queue.Queue()  # megatron's is a process that imports all of this once more


def wrong(policy: Policy, shape: ModelShape, layout: parallel.Layout, hf: Path) -> list[str]:
    """Names that the export lacks, repeats or holds other numbers under."""
    reader, seen, found = HFReader(hf), set[str](), list[str]()
    for name, tensor in weights.export(policy, shape, layout):
        if name in seen or not torch.equal(tensor, reader.tensor(name)):
            found.append(name)
        seen.add(name)
    return found + sorted(set(reader.names) - seen)


def blank(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(7)


def check(folder: Path, cfg: ParallelConfig, layout: parallel.Layout) -> list[list[str]]:
    """From the Hugging Face directory, then from the checkpoint; then save as both."""
    hf, name = folder / "hf", f"{cfg.tensor}x{cfg.pipeline}x{cfg.virtual_pipeline}"
    shape = ModelShape.from_hf(hf)
    policy = build_model(shape, Config(parallel=cfg), empty=True)
    found: list[list[str]] = []
    for source in (hf, folder / "checkpoint"):
        blank(policy)
        weights.load(policy, shape, layout, source)
        found.append(wrong(policy, shape, layout, hf))
    weights.save(policy, shape, layout, hf, folder / f"saved_{name}")
    native = folder / f"native_{name}"
    if layout.leader:
        (native / LEARNER).mkdir(parents=True)
    dist.barrier()
    metadata = {"dp_cp_group": layout.replica_group}
    chunks = {str(i): chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(policy)}
    dist_checkpointing.save(chunks, str(native / LEARNER))
    return found


def main() -> None:
    """Every policy in every layout."""
    root = Path(sys.argv[1])
    for spec in sys.argv[2:]:
        tensor, pipeline, virtual = map(int, spec.split("x"))
        cfg = ParallelConfig(tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual)
        layout = parallel.initialize(cfg, seed=0)
        for folder in sorted(root.iterdir()):
            found: list[list[list[str]]] = [[]] * layout.world
            dist.all_gather_object(found, check(folder, cfg, layout))
            if layout.leader:
                row = {"layout": spec, "policy": folder.name, "wrong": found}
                sys.stdout.write("RESULT " + json.dumps(row) + "\n")
        parallel_state.destroy_model_parallel()  # the next layout is another
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
