"""Runs one case of the learner on every rank of a torchrun launch and prints what it found as JSON.

    torchrun --nproc-per-node 2 tests/learner/ranks.py POLICY OUTPUT CASE...

Starting processes and importing megatron costs seconds, so one launch runs many cases.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gigpo_mega.batching import pack
from gigpo_mega.config import Config
from gigpo_mega.learner import parallel
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.policy import improve
from gigpo_mega.learner.update import Learner
from gigpo_mega.types import Advantages, RowTable, Step
from gigpo_mega.weights import export as weights

ROWS = 24


def config(tensor: int, sequence_parallel: bool = False, distributed_optimizer: bool = True) -> Config:
    """Two updates an iteration with KL and entropy, a decaying learning rate and clipping that bites."""
    return Config(
        parallel={  # type: ignore[arg-type]  pydantic builds the section
            "tensor": tensor,
            "sequence_parallel": sequence_parallel,
            "distributed_optimizer": distributed_optimizer,
        },
        optimizer={
            "lr": 1e-2,
            "schedule": "linear",
            "warmup_updates": 1,
            "decay_updates": 20,
            "grad_clip": 0.5,
        },  # type: ignore[arg-type]
        objective={"kl_coef": 0.05, "entropy_coef": 0.01},  # type: ignore[arg-type]
        batch={"rows": ROWS // 2, "microbatch_tokens": 150},  # type: ignore[arg-type]
        engine={"max_logprob_gap": 100.0},  # type: ignore[arg-type]  the test rows' log-probs are random
    )


def table(steps: tuple[Step, ...]) -> tuple[RowTable, Advantages]:
    """All steps as one trajectory each, with fixed random advantages."""
    count = len(steps)
    index = np.arange(count, dtype=np.int64)
    total = np.random.default_rng(1).standard_normal(count).astype(np.float32)
    rows = RowTable(
        group=index * 0, trajectory=index, step=index * 0, reward=np.zeros(count),
        valid=np.ones(count, dtype=np.bool_), anchor=np.zeros((count, 2), dtype=np.uint64), steps=steps,
    )  # fmt: skip
    return rows, Advantages(total, total, total * 0, index)


def learner(cfg: Config, policy: Path, layout: parallel.Layout) -> Learner:
    """A learner with the weights of `policy`, which are its reference too."""
    made = Learner(cfg, ModelShape.from_hf(policy), layout)
    weights.load(made.policy, made.shape, layout, policy)
    made.refresh()
    made.keep_reference()
    return made


def digest(made: Learner) -> dict[str, list[float]]:
    """Every weight, as whole Hugging Face tensors: sum, and sum of magnitudes, in float64."""
    return {
        name: [float(t.double().sum()), float(t.double().abs().sum())]
        for name, t in weights.export(made.policy, made.shape, made.layout)
    }


def case_improve(cfg: Config, policy: Path, output: Path, layout: parallel.Layout) -> dict[str, Any]:
    """Two iterations from the shared checkpoint: all metrics, then all weights."""
    from tests.tiny import random_steps

    made = learner(cfg, policy, layout)
    rows, advantages = table(random_steps(ROWS))
    return {"metrics": [improve(made, rows, advantages, cfg, i) for i in range(2)], "weights": digest(made)}


def case_save(cfg: Config, policy: Path, output: Path, layout: parallel.Layout) -> dict[str, Any]:
    """One iteration, a checkpoint, then another iteration without stopping."""
    from tests.tiny import random_steps

    made = learner(cfg, policy, layout)
    rows, advantages = table(random_steps(ROWS))
    improve(made, rows, advantages, cfg, 0)
    made.iteration = 1
    Checkpoints(output, cfg.checkpoint).save(made)
    return {"metrics": [improve(made, rows, advantages, cfg, 1)], "weights": digest(made)}


def case_resume(cfg: Config, policy: Path, output: Path, layout: parallel.Layout) -> dict[str, Any]:
    """The second iteration of `case_save` from its checkpoint."""
    from tests.tiny import random_steps

    made = learner(cfg, policy, layout)
    Checkpoints(output, cfg.checkpoint).load(made, 1)
    rows, advantages = table(random_steps(ROWS))
    return {"metrics": [improve(made, rows, advantages, cfg, 1)], "weights": digest(made)}


def case_score(cfg: Config, policy: Path, output: Path, layout: parallel.Layout) -> dict[str, Any]:
    """Log-probabilities of this rank's rows, by row."""
    from tests.tiny import random_steps

    made = learner(cfg, policy, layout)
    steps = random_steps(ROWS)
    batches = pack(steps, np.arange(ROWS), 150, ranks=layout.data, rank=layout.data_rank)
    found: dict[int, list[float]] = {}
    for batch, scores in zip(batches, made.score(batches), strict=True):
        parts = np.split(scores, np.cumsum(batch.lengths)[:-1])
        found |= {int(r): p.tolist() for r, p in zip(batch.rows, parts, strict=True)}
    return {"scores": found}


def main() -> None:
    """Run each CASE:tensor[:flags] and print one JSON line per case from rank 0."""
    policy, output = Path(sys.argv[1]), Path(sys.argv[2])
    for spec in sys.argv[3:]:
        name, tensor, *flags = spec.split(":")
        cfg = config(int(tensor), "sp" in flags, "plain" not in flags)
        layout = parallel.initialize(cfg.parallel, seed=0)
        result = globals()[f"case_{name}"](cfg, policy, output, layout)
        if layout.leader:
            sys.stdout.write("RESULT " + json.dumps({"case": spec, "world": layout.world} | result) + "\n")
            sys.stdout.flush()
    parallel.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
