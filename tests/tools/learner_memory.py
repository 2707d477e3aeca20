"""Memory of real learners on every rank of a launch, and of the same ranks emulated.

    torchrun --nproc-per-node 2 tests/tools/learner_memory.py CASE...

A case is a shape and overrides in the spelling of the command line: `qwen2:parallel.tensor=2`. Prints one
JSON line per case and rank.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from torch.profiler import ProfilerActivity, profile

from gigpo_mega.batching import MicroBatch
from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.launch import rank_and_world
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.targets import Targets
from gigpo_mega.learner.update import surrogate
from gigpo_mega.shape import ModelShape
from tools.bench.emulation import emulate, held, micro_batches

# Few response tokens and a small vocabulary keep the output layer small.
SHAPES = {
    "qwen2": ModelShape("qwen2", 512, 192, 768, 4, 6, 2, 32, 1e4, 1e-6, 2048, True, True),
    "qwen3": ModelShape("qwen3", 512, 128, 512, 4, 4, 2, 64, 1e4, 1e-6, 2048, False, False),
}
BASE = [
    *("--rollout.max_prompt_tokens", "252", "--rollout.max_response_tokens", "5"),
    *("--batch.microbatch_tokens", "1028", "--weights.max_logprob_gap", "100"),
]


def config(case: str) -> tuple[ModelShape, Config]:
    """Shape and configuration of a case."""
    name, *overrides = case.split(":")
    return SHAPES[name], load_config([*BASE, *(f"--{item}" for item in overrides)], "learner_memory")


def peak(learner: Learner, batches: Sequence[tuple[MicroBatch, Targets]], cfg: Config) -> float:
    """The most bytes that an update allocates beyond what was allocated before it."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        learner.update(batches, partial(surrogate, cfg, compare=True))
    profiler: Any = recorded.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return float(np.cumsum(sizes).max())


def run(case: str) -> dict[str, Any]:
    """What this rank holds, and what an update adds."""
    shape, cfg = config(case)
    parallel_state.destroy_model_parallel()
    learner = Learner(cfg, shape, layouts.initialize(cfg.parallel, seed=0))
    if cfg.objective.kl_coef:
        learner.keep_reference()
    batches = micro_batches(cfg, learner)
    learner.update(batches, partial(surrogate, cfg, compare=True))  # Adam's state appears
    # The least of three: on a loaded machine gloo's threads hold buffers longer.
    return {"held": held(learner), "peak": min(peak(learner, batches, cfg) for _ in range(3))}


def main() -> None:
    """Run each case, then emulate it; every rank prints."""
    rank, world = rank_and_world()
    real = {case: run(case) for case in sys.argv[1:]}
    layouts.shutdown()
    for case, found in real.items():
        shape, cfg = config(case)
        emulated = asdict(emulate(cfg, shape, rank, world, gpu=False))
        sys.stdout.write("RESULT " + json.dumps({"case": case, "real": found, "emulated": emulated}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
