"""One rank of a world of any size, at true size, on a machine without GPUs: its bytes beside the plan's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from gigpo_mega.batching import MicroBatch
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner import torch_adam
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.targets import Targets
from gigpo_mega.learner.update import surrogate
from gigpo_mega.planning import memory
from gigpo_mega.shape import ModelShape
from gigpo_mega.types import Step
from tools.bench.fake_tensors import without_data, without_peers

HELD = ("weights", "gradients", "optimizer", "reference")


@dataclass(frozen=True, slots=True)
class Emulation:
    """Bytes of one rank."""

    rank: int
    world: int
    stage: int
    microbatches: int
    held: dict[str, float]  # between updates, by the names of HELD
    planned_held: dict[str, float]
    unplanned: float  # held beyond these
    kept: float  # by forward passes, when the first backward pass begins
    peak: float  # of forward and backward passes beyond what is held
    planned_peak: float
    reads: dict[str, int]  # where the host waited for a number of the device, and how often


def emulate(cfg: Config, shape: ModelShape, rank: int, world: int, gpu: bool = True) -> Emulation:
    """What `rank` of `world` holds, and allocates for forward and backward passes of an update.

    Layers are `local`; kernels are those of a GPU or, to be compared with a real learner, of a CPU. Raises
    UserError for a layout that does not divide `world` or the shape, and for what has no such kernels.
    """
    if gpu:
        cfg = on_gpu(cfg)
    with without_peers(rank, world):
        layout = layouts.initialize(cfg.parallel, cfg.seed)
        with without_data(gpu) as meter:
            learner = Learner(cfg, shape, layout)
            if cfg.objective.kl_coef:
                learner.keep_reference()
            torch_adam.prefill(learner.optimizer)
            found, before = held(learner), meter.now
            batches = micro_batches(cfg, learner)
            meter.peak, meter.kept = before, None
            learner.accumulate(batches, partial(surrogate, cfg, compare=True))
    stage, replicas = layout.pipeline_rank, layout.data * layout.context
    planned = memory.stored(shape, cfg, stage, replicas)
    return Emulation(
        rank=rank,
        world=world,
        stage=stage,
        microbatches=len(batches),
        held=found,
        planned_held=dict(zip(HELD, planned, strict=True)),
        unplanned=before - sum(found.values()),
        kept=float((meter.kept or 0) - before),
        peak=float(meter.peak - before),
        planned_peak=sum(memory.passes(shape, cfg, stage, len(batches))),
        reads=dict(meter.reads),
    )


def on_gpu(cfg: Config) -> Config:
    """`cfg` with what a GPU without Transformer Engine chooses for it."""
    if cfg.model.layers == "te" or cfg.model.dtype != "bfloat16":
        raise UserError(
            f"model.layers {cfg.model.layers} with model.dtype {cfg.model.dtype} is not emulated: "
            "Transformer Engine needs a GPU, our Triton kernels bfloat16; set them to local and bfloat16"
        )
    return replace(
        cfg, model=replace(cfg.model, layers="local"), kernels=replace(cfg.kernels, backend="triton")
    )


def held(learner: Learner) -> dict[str, float]:
    """Bytes of the tensors that this rank holds between updates."""
    parameters = list(learner.policy.parameters())
    own = {p.untyped_storage()._cdata for p in parameters}
    state: list[Tensor] = []
    for part in torch_adam.parts(learner.optimizer):
        for main, values in part.optimizer.state.items():
            state += [values["exp_avg"], values["exp_avg_sq"]]
            state += [main] if main.untyped_storage()._cdata not in own else []
    copied = learner.reference is not None and learner.reference is not learner.policy
    reference = list(learner.reference.parameters()) if learner.reference and copied else []
    gradients: list[Any] = [p.main_grad for p in parameters if p.requires_grad]  # pyright: ignore[reportAttributeAccessIssue]
    groups = (parameters, gradients, state, reference)
    return {
        name: float(sum(t.numel() * t.element_size() for t in tensors))
        for name, tensors in zip(HELD, groups, strict=True)
    }


def micro_batches(cfg: Config, learner: Learner) -> list[tuple[MicroBatch, Targets]]:
    """Two micro-batches for each stage of the pipeline, each as full as the plan takes it to be."""
    longest = memory.longest_row(cfg)
    tokens = max(cfg.batch.microbatch_tokens, longest)
    rows = -(-tokens // longest)
    columns = tokens // rows
    response = round(columns * cfg.rollout.max_response_tokens / longest)
    prompt = np.zeros(columns + 1 - response, np.int32)  # the last token of a row is no input
    said = np.zeros(response, np.int32)
    step = Step(prompt, said, said.astype(np.float32), 0.0, True, bytes(16), said)
    count = 2 * learner.layout.data * learner.layout.pipeline * rows
    labeled: list[tuple[MicroBatch, Targets]] = []
    for batch in learner.pack([step] * count, np.arange(count)):
        zeros = np.zeros(batch.lengths.sum(), np.float32)
        present = zeros.astype(np.int32)
        labeled.append((batch, Targets(zeros, zeros, zeros, zeros, present, zeros, 1, batch.lengths)))
    return labeled
