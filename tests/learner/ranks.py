"""Runs cases of the learner on every rank of a launch and prints what rank 0 found, one JSON line a case.

    torchrun --nproc-per-node 4 tests/learner/ranks.py POLICY OUTPUT train:tensor=2:packed=false ...

A case is a function here and the fields of ParallelConfig, BatchConfig and ModelConfig that it changes.
Starting processes and importing megatron costs seconds, so one launch runs many cases.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import yaml
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig

from gigpo_mega.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    WeightsConfig,
)
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.update import update_policy
from gigpo_mega.shape import ModelShape
from gigpo_mega.types import Advantages, RowTable, Step
from gigpo_mega.weights import live as weights
from kernels.logprob import linear_logprob
from tests.helpers import smallest_files
from tests.kernels import exact
from tests.tiny import random_steps, write_policy

ROWS = 18


@dataclass(frozen=True)
class Place:
    """Where a case runs."""

    cfg: Config
    policy: Path
    output: Path
    layout: parallel.Layout

    @property
    def folder(self) -> Path:
        """Where this layout keeps its checkpoints."""
        return self.output / folder(self.layout.world, self.cfg)


def folder(world: int, cfg: Config) -> str:
    """The name of the folder where a layout keeps its checkpoints, those of adapters by themselves."""
    values = [cfg.lora.rank, *asdict(cfg.parallel).values()]
    return f"world_{world}_" + "_".join(str(value) for value in values)


def config(**changes: Any) -> Config:
    """Three updates an iteration with KL and entropy, a decaying learning rate and clipping that bites.

    `changes` are fields of the parallel, batch, model, lora, checkpoint and objective sections.
    """

    def section(kind: type[Any], **defaults: Any) -> Any:
        names = {f.name for f in fields(kind)} & changes.keys()
        return kind(**defaults | {name: changes.pop(name) for name in names})

    cfg = Config(
        model=section(ModelConfig),
        lora=section(LoraConfig),
        checkpoint=section(CheckpointConfig),
        parallel=section(ParallelConfig),
        # Adam's epsilon is above the gradients' rounding: a key's bias has no gradient but that.
        optimizer=OptimizerConfig(
            lr=1e-2, schedule="linear", warmup_updates=1, decay_updates=20, grad_clip=0.5, epsilon=1e-5
        ),
        objective=section(ObjectiveConfig, kl_coef=0.05, entropy_coef=0.01),
        batch=section(BatchConfig, rows_per_update=ROWS // 3, microbatch_tokens=120),
        weights=WeightsConfig(max_logprob_gap=100.0),  # the test rows' log-probs are random
    )
    assert not changes, f"no such fields: {changes}"
    return cfg


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
    made = Learner(place.cfg, ModelShape.from_hf(place.policy), place.layout, empty=True)
    weights.load(made.policy, made.shape, place.layout, place.policy)
    made.refresh()
    made.keep_reference()
    return made


def iterate(made: Learner, cfg: Config, iteration: int) -> dict[str, float]:
    """One iteration on the shared rows."""
    rows, advantages = table(random_steps(ROWS))
    return update_policy(made, rows, advantages, cfg, iteration).metrics


def outcome(made: Learner, place: Place, metrics: list[dict[str, float]]) -> dict[str, Any]:
    """The metrics, which all ranks must share, and the weights' sums and distance from one process's.

    The first case of one process writes the weights that the others are compared with; so does the first one
    with adapters.
    """
    everyone: list[Any] = [None] * place.layout.world
    dist.all_gather_object(everyone, metrics)
    assert all(metrics == other for other in everyone)
    whole = {name: t.float().clone() for name, t in weights.export(made.policy, made.shape, made.layout)}
    reference = place.output / f"weights_{place.cfg.lora.rank}.pt"
    if place.layout.world == 1 and not reference.exists():
        torch.save(whole, reference)
    expected = torch.load(reference, weights_only=True)
    assert whole.keys() == expected.keys()
    distance = max(float((whole[name] - expected[name]).abs().max()) for name in whole)
    sums = {name: float(t.double().sum()) for name, t in whole.items()}
    return {"metrics": metrics, "distance": distance, "weights": sums}


def case_train(place: Place) -> dict[str, Any]:
    """Two iterations with a checkpoint between them."""
    made = learner(place)
    first = iterate(made, place.cfg, 0)
    checkpoints = Checkpoints(place.folder, place.cfg.checkpoint)
    checkpoints.save(made)
    second = iterate(made, place.cfg, 1)
    checkpoints.finish(made)  # one written in the background holds nothing of the second iteration
    return outcome(made, place, [first, second])


def case_iterate(place: Place) -> dict[str, Any]:
    """One iteration that leaves nothing, and the learner's log-probabilities on the leader."""
    learned = update_policy(learner(place), *table(random_steps(ROWS)), place.cfg, 0)
    assert (learned.logprobs is None) == (not place.layout.leader)
    return {"metrics": [learned.metrics], "logprobs": np.asarray(learned.logprobs, np.float32).tolist()}


def case_buckets(place: Place) -> dict[str, Any]:
    """An untied policy in several buckets: which weights differ after two iterations.

    From those without `overlap_param_gather`. In a large policy the output layer is a bucket of its own.
    """
    policy = place.output / f"untied_{place.layout.world}"
    if place.layout.leader:
        write_policy(policy, tie_word_embeddings=False)
    dist.barrier()
    small = partial(DistributedDataParallelConfig, bucket_size=5000)
    exported: list[dict[str, torch.Tensor]] = []
    for parallel_config in (replace(place.cfg.parallel, overlap_param_gather=False), place.cfg.parallel):
        cfg = replace(place.cfg, parallel=parallel_config)
        with mock.patch("gigpo_mega.learner.learner.DistributedDataParallelConfig", small):
            made = learner(replace(place, cfg=cfg, policy=policy))
        for iteration in range(2):
            iterate(made, cfg, iteration)
        whole = weights.export(made.policy, made.shape, made.layout)
        exported.append({name: tensor.clone() for name, tensor in whole})
    without, overlapped = exported
    different = [name for name, tensor in without.items() if not torch.equal(tensor, overlapped[name])]
    everyone: list[Any] = [None] * place.layout.world
    dist.all_gather_object(everyone, different)
    chunk: Any = made._chunks[0]
    return {"different": everyone, "buckets": len(chunk.bucket_groups)}


def case_handed(place: Place) -> dict[str, Any]:
    """One iteration on rows that the leader alone has: its metrics, and the bytes that reach each rank."""
    made, (rows, advantages) = learner(place), table(random_steps(ROWS))
    if not place.layout.leader:
        rows = RowTable.from_groups(())
    outline, tokens = [], []

    def broadcast_object_list(box: list[Any], **options: Any) -> None:
        dist.broadcast_object_list(box, **options)
        if not options:  # those of a group bring back what was learned
            outline.append(len(pickle.dumps(box)))

    def scatter(received: Any, *arguments: Any, **options: Any) -> None:
        dist.scatter(received, *arguments, **options)
        tokens.append(received.nbytes)

    def broadcast(received: Any, group_src: int, group: Any) -> None:
        dist.broadcast(received, group_src=group_src, group=group)
        if dist.get_rank(group) != group_src:
            tokens.append(received.nbytes)

    wire = SimpleNamespace(
        broadcast=broadcast,
        broadcast_object_list=broadcast_object_list,
        gather_object=dist.gather_object,
        scatter=scatter,
    )
    with mock.patch("gigpo_mega.learner.samples.dist", wire):
        metrics = update_policy(made, rows, advantages, place.cfg, 0).metrics
    everyone: list[Any] = [None] * place.layout.world
    found = {"metrics": metrics, "outline": sum(outline), "tokens": sum(tokens)}
    dist.all_gather_object(everyone, found)
    return {"everyone": everyone}


def case_resume(place: Place, written_by: str | None = None) -> dict[str, Any]:
    """The second iteration of `case_train` from its checkpoint."""
    made = learner(place)
    source = place.output / written_by if written_by else place.folder
    Checkpoints(source, place.cfg.checkpoint).load(made, 1)
    return outcome(made, place, [iterate(made, place.cfg, 1)])


def case_reshard(place: Place) -> dict[str, Any]:
    """The same from the checkpoint that two tensor x two pipeline ranks wrote."""
    written_by = replace(place.cfg, parallel=ParallelConfig(tensor=2, pipeline=2))
    return case_resume(place, folder(4, written_by))


def poison(
    learner: Learner, where: str, value: float, at: int, before: Callable[[], object] = bool, times: int = 1
) -> None:
    """Put `value` into the loss or the gradient of this rank's updates number `at` to `at + times` - 1.

    What is in the scores is in the loss and in the gap to the engine's. `before` is called with the
    gradients ready and nothing changed yet.
    """
    original, seen = learner._metrics, iter(range(1_000_000))

    def poisoned(reports: Any) -> Any:
        sums, losses, means, peaks = original(reports)
        if next(seen) in range(at, at + times):
            before()
            if where == "scores":
                means["engine/logprob_gap_mean"] = peaks["engine/logprob_gap_max"] = value
            if where in ("loss", "scores"):
                losses["loss/total"] = value
            else:
                chunk: Any = learner._chunks[0]
                chunk.buffers[0].grad_data[3] = value
        return [sums, losses, means, peaks]

    learner._metrics = poisoned  # type: ignore[method-assign]


def case_poisoned(place: Place) -> dict[str, Any]:
    """One rank's gradient is not finite in the second update: the error of every rank, and the weights."""
    made = learner(place)
    states: list[Any] = []

    def note() -> None:
        states.append([p.detach().clone() for p in made.policy.parameters()])

    last = place.layout.rank == place.layout.world - 1
    poison(made, "gradient", float("nan") if last else 0.0, 1, note)
    error = ""
    try:
        iterate(made, place.cfg, 0)
    except UserError as found:
        error = str(found)
    same = all(torch.equal(p, q) for p, q in zip(made.policy.parameters(), states[0], strict=True))
    everyone: list[Any] = [None] * place.layout.world
    dist.all_gather_object(everyone, [error, same])
    return {"everyone": everyone}


def case_full(place: Place) -> dict[str, Any]:
    """The disk refuses one rank's file: the error of every rank, and which checkpoints are left."""
    made = learner(place)
    iterate(made, place.cfg, 1)
    with smallest_files(resource.RLIM_INFINITY if place.layout.leader else 50_000):
        return refused_save(made, place)


def refused_save(made: Learner, place: Place) -> dict[str, Any]:
    """The error of every rank when `made` is saved, and which checkpoints are left."""
    errors: list[str] = [""] * place.layout.world
    error = ""
    try:
        Checkpoints(place.folder, place.cfg.checkpoint).save(made)
    except UserError as found:
        error = str(found)
    dist.all_gather_object(errors, error)
    return {"errors": errors, "left": sorted(path.name for path in place.folder.iterdir())}


def case_unfit(place: Place) -> dict[str, Any]:
    """A weight of the last rank alone is not finite when all save: the first must not begin to write."""
    made = learner(place)
    made.iteration = 2
    with torch.no_grad():
        chunk: Any = next(iter(made.policy))
        part = chunk.decoder.layers[0].mlp.linear_fc1.weight
        part[0, 0] = 0.0 if place.layout.rank < place.layout.world - 1 else float("nan")
    return refused_save(made, place)


def case_score(place: Place) -> dict[str, Any]:
    """Log-probabilities of this rank's rows, by row."""
    made = learner(place)
    steps = random_steps(ROWS)
    batches = made.pack(steps, np.arange(ROWS))
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


def run(policy: Path, output: Path, spec: str) -> dict[str, Any] | None:
    """The result of one case; None on all ranks but the first."""
    name, *changes = spec.split(":")
    cfg = config(**{key: yaml.safe_load(value) for key, value in (c.split("=") for c in changes)})
    layout = parallel.initialize(cfg.parallel, seed=0)
    result = globals()[f"case_{name}"](Place(cfg, policy, output, layout))
    parallel_state.destroy_model_parallel()  # the next case may ask for another layout
    return {"case": spec, "world": layout.world} | result if layout.leader else None


def main() -> None:
    """Run each case in its layout."""
    for spec in sys.argv[3:]:
        result = run(Path(sys.argv[1]), Path(sys.argv[2]), spec)
        if result:
            sys.stdout.write("RESULT " + json.dumps(result) + "\n")
            sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
