"""Runs cases of the learner on every rank of a launch and prints what rank 0 found, one JSON line a case.

    torchrun --nproc-per-node 2 tests/learner/ranks.py POLICY OUTPUT CASE:TENSOR[:sp][:plain]...

Starting processes and importing megatron costs seconds, so one launch runs many cases.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gigpo_mega.batching import pack
from gigpo_mega.config import (
    BatchConfig,
    Config,
    EngineConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
)
from gigpo_mega.errors import UserError
from gigpo_mega.learner import parallel
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.policy import improve
from gigpo_mega.learner.update import Learner
from gigpo_mega.types import Advantages, RowTable, Step
from gigpo_mega.weights import export as weights
from kernels.logprob import linear_logprob
from tests.kernels import exact
from tests.tiny import random_steps

from megatron.core import parallel_state  # isort: skip  (learner has installed the CPU patches)

ROWS = 24


@dataclass(frozen=True)
class Place:
    """Where a case runs."""

    cfg: Config
    policy: Path
    output: Path
    layout: parallel.Layout

    @property
    def folder(self) -> Path:
        """Where this world and layout keep their checkpoints."""
        kind = "distributed" if self.cfg.parallel.distributed_optimizer else "plain"
        return self.output / f"world{self.layout.world}_tensor{self.layout.tensor}_{kind}"


def config(tensor: int, sequence_parallel: bool = False, distributed_optimizer: bool = True) -> Config:
    """Two updates an iteration with KL and entropy, a decaying learning rate and clipping that bites."""
    return Config(
        parallel=ParallelConfig(
            tensor=tensor, sequence_parallel=sequence_parallel, distributed_optimizer=distributed_optimizer
        ),
        optimizer=OptimizerConfig(
            lr=1e-2, schedule="linear", warmup_updates=1, decay_updates=20, grad_clip=0.5
        ),
        objective=ObjectiveConfig(kl_coef=0.05, entropy_coef=0.01),
        batch=BatchConfig(rows=ROWS // 2, microbatch_tokens=150),
        engine=EngineConfig(max_logprob_gap=100.0),  # the test rows' log-probs are random
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


def learner(place: Place) -> Learner:
    """A learner with the weights of the shared policy, which are its reference too."""
    made = Learner(place.cfg, ModelShape.from_hf(place.policy), place.layout)
    weights.load(made.policy, made.shape, place.layout, place.policy)
    made.refresh()
    made.keep_reference()
    return made


def iterate(made: Learner, cfg: Config, iteration: int) -> dict[str, float]:
    """One iteration on the shared rows."""
    rows, advantages = table(random_steps(ROWS))
    metrics = improve(made, rows, advantages, cfg, iteration)
    made.iteration = iteration + 1
    return metrics


def digest(made: Learner) -> dict[str, list[float]]:
    """Every weight, as whole Hugging Face tensors: sum, and sum of magnitudes, in float64."""
    return {
        name: [float(t.double().sum()), float(t.double().abs().sum())]
        for name, t in weights.export(made.policy, made.shape, made.layout)
    }


def case_train(place: Place) -> dict[str, Any]:
    """Two iterations with a checkpoint between them: all metrics, then all weights."""
    made = learner(place)
    first = iterate(made, place.cfg, 0)
    Checkpoints(place.folder, place.cfg.checkpoint).save(made)
    return {"metrics": [first, iterate(made, place.cfg, 1)], "weights": digest(made)}


def case_resume(place: Place, written_by: str | None = None) -> dict[str, Any]:
    """The second iteration of `case_train` from its checkpoint."""
    made = learner(place)
    folder = place.output / written_by if written_by else place.folder
    Checkpoints(folder, place.cfg.checkpoint).load(made, 1)
    return {"metrics": [iterate(made, place.cfg, 1)], "weights": digest(made)}


def case_reshard(place: Place) -> dict[str, Any]:
    """The same from the checkpoint that one process wrote."""
    return case_resume(place, "world1_tensor1_distributed")


@contextmanager
def smallest_files(limit: int) -> Iterator[None]:
    """No file of this process or its children grows beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def case_full(place: Place) -> dict[str, Any]:
    """The disk refuses one rank's file: the error of every rank, and which checkpoints are left."""
    made = learner(place)
    iterate(made, place.cfg, 1)
    errors: list[str] = [""] * place.layout.world
    error = ""
    with smallest_files(resource.RLIM_INFINITY if place.layout.leader else 50_000):
        try:
            Checkpoints(place.folder, place.cfg.checkpoint).save(made)
        except UserError as found:
            error = str(found)
    dist.all_gather_object(errors, error)
    return {"errors": errors, "left": sorted(path.name for path in place.folder.iterdir())}


def case_score(place: Place) -> dict[str, Any]:
    """Log-probabilities of this rank's rows, by row."""
    made = learner(place)
    steps = random_steps(ROWS)
    batches = pack(steps, np.arange(ROWS), 150, ranks=place.layout.data, rank=place.layout.data_rank)
    found: dict[int, list[float]] = {}
    for batch, scores in zip(batches, made.score(batches), strict=True):
        parts = np.split(scores, np.cumsum(batch.lengths)[:-1])
        found |= {int(r): p.tolist() for r, p in zip(batch.rows, parts, strict=True)}
    return {"scores": found}


def case_logprob(place: Place) -> dict[str, Any]:
    """The log-prob kernel on a split vocabulary: the largest error of each value and gradient."""
    group, rank, ranks = place.layout.tensor_group, place.layout.tensor_rank, place.layout.tensor
    whole_hidden, whole_weight, target, *upstream = exact.inputs(vocab=32)
    case: dict[str, Any] = {"temperature": torch.linspace(0.5, 2.0, len(target)), "vocab_size": 29}
    target = target.clamp(max=28)
    expected = exact.linear_logprob(whole_hidden, whole_weight, target, *upstream, **case)
    hidden = whole_hidden.clone().requires_grad_()
    shard = whole_weight.chunk(ranks)[rank].clone().requires_grad_()
    start = rank * len(shard)
    logprob, entropy = linear_logprob(hidden, shard, target, vocab_start=start, group=group, **case)
    (upstream[0] * logprob + upstream[1] * entropy).sum().backward()
    assert hidden.grad is not None
    d_weight = [torch.empty_like(shard) for _ in range(ranks)]
    dist.all_reduce(hidden.grad, group=group)
    dist.all_gather(d_weight, shard.grad, group=group)
    found = (logprob.detach(), entropy.detach(), hidden.grad, torch.cat(d_weight))
    names = ("logprob", "entropy", "d_hidden", "d_weight")
    largest = [float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)]
    return {"errors": dict(zip(names, largest, strict=True))}


def main() -> None:
    """Run each case in its layout."""
    policy, output = Path(sys.argv[1]), Path(sys.argv[2])
    for spec in sys.argv[3:]:
        name, tensor, *flags = spec.split(":")
        cfg = config(int(tensor), "sp" in flags, "plain" not in flags)
        layout = parallel.initialize(cfg.parallel, seed=0)
        result = globals()[f"case_{name}"](Place(cfg, policy, output, layout))
        if layout.leader:
            sys.stdout.write("RESULT " + json.dumps({"case": spec, "world": layout.world} | result) + "\n")
            sys.stdout.flush()
        parallel_state.destroy_model_parallel()  # the next case may ask for another layout
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
