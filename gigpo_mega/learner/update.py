"""The learner: a megatron-core policy, its optimizer and one way to turn micro-batches into an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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

Sums = dict[str, Tensor]
Loss = Callable[[int, MicroBatch, Tensor, Tensor], tuple[Tensor, Sums]]
"""(index, micro-batch, logprob [n], entropy [n]) -> (loss summed over tokens, metrics summed over tokens)."""


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """One optimizer update, the same on every rank."""

    tokens: int  # the loss denominator, over all ranks
    grad_norm: float  # before clipping
    lr: float
    means: dict[str, float]  # token means of the loss's metrics


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

        The denominator is the token count of all ranks and micro-batches, so that no split changes the
        gradient.
        """
        self._model.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports: list[Sums] = get_forward_backward_func()(
            forward_step_func=partial(_forward_step, loss=loss),
            data_iterator=iter(enumerate(batches)),
            model=self._model,
            num_microbatches=len(batches),
            seq_length=1,  # only read by pipeline stages
            micro_batch_size=1,
            forward_only=False,
        )
        _, grad_norm, _ = self.optimizer.step()
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.scheduler.step(1)
        sums = self._reduce({k: float(sum(r[k] for r in reports)) for k in reports[0]})
        tokens = sums.pop("tokens")
        return UpdateStats(int(tokens), float(grad_norm), lr, {k: v / tokens for k, v in sums.items()})

    def _reduce(self, sums: dict[str, float]) -> dict[str, float]:
        names = sorted(sums)
        values = torch.tensor([sums[n] for n in names], dtype=torch.float64, device=self.layout.device)
        dist.all_reduce(values, group=self.layout.data_group)
        return dict(zip(names, values.tolist(), strict=True))


def _forward(model: Any, batch: MicroBatch) -> Tensor:
    """[2, n]: log-probability and entropy of the response tokens."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    tokens, labels, mask = (torch.from_numpy(x).to(device) for x in (batch.tokens, batch.labels, batch.mask))
    positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    return model(tokens, positions, None, labels=labels, loss_mask=mask)


def _forward_step(
    batches: Iterator[tuple[int, MicroBatch]], model: Any, loss: Loss
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Sums]]]:
    index, batch = next(batches)

    def reduce(output: Tensor) -> tuple[Tensor, Tensor, Sums]:
        total, sums = loss(index, batch, output[0], output[1])
        tokens = torch.tensor(int(batch.lengths.sum() * batch.weight), dtype=torch.int, device=output.device)
        report = {name: value.detach() * batch.weight for name, value in sums.items()}
        report |= {"loss/total": total.detach() * batch.weight, "tokens": tokens}
        return total * batch.weight, tokens, report

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
