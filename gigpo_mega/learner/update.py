"""The learner: a megatron-core policy, its optimizer and one way to turn micro-batches into an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gigpo_mega.batching import MicroBatch
from gigpo_mega.config import Config, OptimizerConfig
from gigpo_mega.learner.model import ModelShape, PolicyModel, build_model
from gigpo_mega.learner.parallel import Layout
from gigpo_mega.types import Float32

from megatron.core.distributed import (  # isort: skip  (learner.parallel has installed the CPU patches)
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig  # isort: skip
from megatron.core.optimizer import get_megatron_optimizer  # isort: skip
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler  # isort: skip
from megatron.core.pipeline_parallel import get_forward_backward_func  # isort: skip


@dataclass(frozen=True, slots=True)
class Report:
    """What a loss measured on one micro-batch."""

    sums: dict[str, Tensor]  # over tokens; they become token means
    peaks: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # the largest of any token


Loss = Callable[[int, MicroBatch, Tensor, Tensor], tuple[Tensor, Report]]
"""(index, micro-batch, logprob [n], entropy [n]) -> (loss summed over tokens, report)."""


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """One optimizer update, the same on every rank."""

    tokens: int  # the loss denominator, over all ranks
    grad_norm: float  # before clipping
    lr: float
    means: dict[str, float]  # of the loss's metrics, over all tokens
    peaks: dict[str, float]  # the largest of any token


class Learner:
    """A policy under training; every rank of the layout holds one and calls its methods together."""

    def __init__(self, cfg: Config, shape: ModelShape, layout: Layout) -> None:
        self._cfg, self.shape, self.layout = cfg, shape, layout
        self.policy = build_model(shape, cfg.model, cfg.parallel, cfg.rollout.temperature)
        self._model = DistributedDataParallel(
            self.policy.config,
            DistributedDataParallelConfig(
                use_distributed_optimizer=cfg.parallel.distributed_optimizer, grad_reduce_in_fp32=True
            ),
            self.policy,
        )
        self.policy.config.finalize_model_grads_func = finalize_model_grads
        self.policy.config.no_sync_func = self._model.no_sync
        self.optimizer = get_megatron_optimizer(_optimizer_config(cfg), [self._model])
        self.policy.config.grad_scale_func = self.optimizer.scale_loss
        self.scheduler = _scheduler(self.optimizer, cfg.optimizer)
        self.reference: PolicyModel | None = None
        self.iteration = 0  # iterations this policy has been improved by

    def refresh(self) -> None:
        """Tell the optimizer that the policy's parameters were replaced (its fp32 copies are renewed)."""
        self.optimizer.reload_model_params()

    def keep_reference(self) -> None:
        """Freeze a copy of the present policy, which `score(reference=True)` and the KL term refer to."""
        self.reference = build_model(self.shape, self._cfg.model, self._cfg.parallel, self.policy.temperature)
        self.reference.load_state_dict(self.policy.state_dict())
        self.reference.requires_grad_(False)

    def score(self, batches: Sequence[MicroBatch], reference: bool = False) -> list[Float32]:
        """Log-probability of each response token of this rank's micro-batches, each float32 [n]."""
        model = self.reference if reference else self.policy
        assert model is not None, "no reference policy was kept"
        model.eval()
        with torch.no_grad():
            scores = [_forward(model, batch)[0].float().cpu().numpy() for batch in batches]
        model.train()
        return scores

    def update(self, batches: Sequence[MicroBatch], loss: Loss) -> UpdateStats:
        """One optimizer update on `loss` over this rank's micro-batches (the same number on every rank).

        The denominator is the token count of all ranks and micro-batches: no split changes the gradient.
        """
        self._model.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports: list[Report] = get_forward_backward_func()(
            forward_step_func=partial(_forward_step, loss=loss),
            data_iterator=iter(enumerate(batches)),
            model=self._model,
            num_microbatches=len(batches),
            seq_length=1,  # only read by pipeline stages
            micro_batch_size=1,
            forward_only=False,
        )
        _, grad_norm, _ = cast(tuple[bool, float, int], self.optimizer.step())
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.scheduler.step(1)
        sums = {name: float(sum(r.sums[name] for r in reports)) for name in reports[0].sums}
        peaks = {name: max(float(r.peaks[name]) for r in reports) for name in reports[0].peaks}
        sums, peaks = self._reduce(sums, dist.ReduceOp.SUM), self._reduce(peaks, dist.ReduceOp.MAX)
        tokens = sums.pop("tokens")
        means = {name: value / tokens for name, value in sums.items()}
        return UpdateStats(int(tokens), float(grad_norm), lr, means, peaks)

    def _reduce(self, values: dict[str, float], operation: dist.ReduceOp.RedOpType) -> dict[str, float]:
        """`values` over the data-parallel ranks."""
        if not values:
            return {}
        reduced = torch.tensor(list(values.values()), dtype=torch.float64, device=self.layout.device)
        dist.all_reduce(reduced, operation, self.layout.data_group)
        return dict(zip(values, reduced.tolist(), strict=True))


def _forward(model: Any, batch: MicroBatch) -> Tensor:
    """[2, n]: log-probability and entropy of the response tokens."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    tokens, labels, mask = (torch.from_numpy(x).to(device) for x in (batch.tokens, batch.labels, batch.mask))
    positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    return model(tokens, positions, None, labels=labels, loss_mask=mask)


def _forward_step(
    batches: Iterator[tuple[int, MicroBatch]], model: Any, loss: Loss
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Report]]]:
    index, batch = next(batches)

    def reduce(output: Tensor) -> tuple[Tensor, Tensor, Report]:
        total, report = loss(index, batch, output[0], output[1])
        total = total * batch.weight
        tokens = torch.tensor(int(batch.lengths.sum() * batch.weight), dtype=torch.int, device=output.device)
        sums = {name: value.detach() * batch.weight for name, value in report.sums.items()}
        sums |= {"loss/total": total.detach(), "tokens": tokens}
        return total, tokens, Report(sums, report.peaks)

    return _forward(model, batch), reduce


def _optimizer_config(cfg: Config) -> MegatronOptimizerConfig:
    o = cfg.optimizer
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=o.lr,
        min_lr=o.min_lr,
        weight_decay=o.weight_decay,
        adam_beta1=o.beta1,
        adam_beta2=o.beta2,
        adam_eps=o.epsilon,
        clip_grad=o.grad_clip,
        bf16=cfg.model.dtype == "bfloat16",
        params_dtype=getattr(torch, cfg.model.dtype),
        use_distributed_optimizer=cfg.parallel.distributed_optimizer,
    )


def _scheduler(optimizer: Any, o: OptimizerConfig) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0 if o.warmup_updates else o.lr,
        max_lr=o.lr,
        min_lr=o.min_lr,
        lr_warmup_steps=o.warmup_updates,
        lr_decay_steps=o.decay_updates or o.warmup_updates + 1,
        lr_decay_style=o.schedule,
        start_wd=o.weight_decay,
        end_wd=o.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


def seed_everything(seed: int) -> None:
    """Seed torch and numpy; initialisation and shuffling draw from them."""
    torch.manual_seed(seed)
    np.random.seed(seed)
