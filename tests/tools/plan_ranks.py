"""Real learners on every rank of a launch: what they hold and what an update adds, one JSON line a case.

    torchrun --nproc-per-node 2 tests/tools/plan_ranks.py CASE...

A case is a shape and overrides in the spelling of the command line: `qwen2:parallel.tensor=2`.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gigpo_mega import options
from gigpo_mega.batching import MicroBatch
from gigpo_mega.config import Config
from gigpo_mega.learner import parallel, torch_adam
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.update import Learner, Report
from gigpo_mega.types import Step

from megatron.core import parallel_state  # isort: skip  (learner has installed the CPU patches)

# Few response tokens, and a small vocabulary, keep the output layer small beside the others.
SHAPES = {
    "qwen2": ModelShape("qwen2", 512, 192, 768, 4, 6, 2, 32, 1e4, 1e-6, 2048, True, True),
    "qwen3": ModelShape("qwen3", 512, 128, 512, 4, 4, 2, 64, 1e4, 1e-6, 2048, False, False),
}
BASE = [
    *("--rollout.max_prompt_tokens", "252", "--rollout.max_response_tokens", "5"),
    *("--batch.microbatch_tokens", "1028", "--engine.max_logprob_gap", "100"),
]


def config(case: str) -> tuple[ModelShape, Config]:
    """What a case asks for."""
    name, *overrides = case.split(":")
    return SHAPES[name], options.load([*BASE, *(f"--{item}" for item in overrides)], "plan_ranks")


def steps(count: int) -> tuple[Step, ...]:
    """Rows of the greatest length, 257 tokens."""
    rng = np.random.default_rng(0)
    return tuple(
        Step(
            prompt_ids=rng.integers(0, 512, 252).astype(np.int32),
            response_ids=rng.integers(0, 512, 5).astype(np.int32),
            logprobs=np.zeros(5, dtype=np.float32),
            reward=0.0,
            valid=True,
            anchor=bytes(16),
            version=0,
            observation="",
            action="",
        )
        for _ in range(count)
    )


def loss(index: int, batch: MicroBatch, logprob: Tensor, entropy: Tensor) -> tuple[Tensor, Report]:
    """The log-likelihood."""
    return -logprob.sum(), Report({})


def held(learner: Learner) -> dict[str, float]:
    """Bytes of the tensors that this rank holds between updates."""
    parameters = list(learner.policy.parameters())
    own = {p.untyped_storage().data_ptr() for p in parameters}
    state: list[Tensor] = []
    for part in torch_adam.parts(learner.optimizer):
        for main, values in part.optimizer.state.items():
            state += [values["exp_avg"], values["exp_avg_sq"]]
            state += [main] if main.untyped_storage().data_ptr() not in own else []
    copied = learner.reference is not None and learner.reference is not learner.policy
    reference = list(learner.reference.parameters()) if learner.reference and copied else []
    gradients: list[Any] = [p.main_grad for p in parameters if p.requires_grad]  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "weights": _bytes(parameters),
        "gradients": _bytes(gradients),
        "optimizer": _bytes(state),
        "reference": _bytes(reference),
    }


def _bytes(tensors: list[Any]) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors))


def peak(learner: Learner, batches: list[MicroBatch]) -> float:
    """The most bytes that an update allocates beyond what was there before it."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        learner.update(batches, loss)
    profiler: Any = recorded.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return float(np.cumsum(sizes).max())


def run(case: str) -> dict[str, Any]:
    """This rank's measurements; the optimizer's are the mean over the ranks that share its shards."""
    shape, cfg = config(case)
    parallel_state.destroy_model_parallel()
    layout = parallel.initialize(cfg.parallel, seed=0)
    learner = Learner(cfg, shape, layout)
    if cfg.objective.kl_coef:
        learner.keep_reference()
    count = layout.data * layout.pipeline * 2 * 4  # two micro-batches of four rows for every stage
    rows = steps(count)
    batches = learner.pack(rows, np.arange(count, dtype=np.int64))
    learner.update(batches, loss)  # Adam's state appears
    found = held(learner)
    mean = torch.tensor(found["optimizer"])
    dist.all_reduce(mean, group=layout.replica_group)
    found["optimizer"] = float(mean) / (layout.data * layout.context)
    return {"case": case, "stage": layout.pipeline_rank, "microbatches": len(batches),
            "replicas": layout.data * layout.context, **found, "peak": peak(learner, batches)}  # fmt: skip


def main() -> None:
    """Run each case; every rank prints."""
    for case in sys.argv[1:]:
        sys.stdout.write("RESULT " + json.dumps(run(case)) + "\n")
        sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
