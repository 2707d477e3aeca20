"""The learner: a megatron-core policy, its optimizer and one way to turn micro-batches into an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gigpo_mega.batching import MicroBatch, pack
from gigpo_mega.config import Config, LoraConfig, OptimizerConfig
from gigpo_mega.learner import context, lora
from gigpo_mega.learner.model import ModelShape, Policy, build_model, uses_transformer_engine
from gigpo_mega.learner.parallel import Layout
from gigpo_mega.learner.pipeline import Communicator
from gigpo_mega.types import Float32, Int64, Step

from megatron.core.distributed import (  # isort: skip  (learner.parallel has installed the CPU patches)
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig  # isort: skip
from megatron.core.optimizer import get_megatron_optimizer  # isort: skip
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler  # isort: skip
from megatron.core.packed_seq_params import PackedSeqParams  # isort: skip
from megatron.core.pipeline_parallel import get_forward_backward_func  # isort: skip

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Report:
    """What a loss measured on one micro-batch."""

    sums: dict[str, Tensor]  # over tokens; they become token means
    peaks: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # the largest of any token
    losses: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # divided as the loss is
    count: int | None = None  # what the loss is divided by, summed over micro-batches and ranks; None: tokens


Loss = Callable[[int, MicroBatch, Tensor, Tensor], tuple[Tensor, Report]]
"""(index, micro-batch, logprob [n], entropy [n]) -> (sum of losses, report)."""


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """One optimizer update, the same on every rank."""

    tokens: int  # over all ranks
    grad_norm: float  # before clipping
    lr: float
    means: dict[str, float]  # of the loss's metrics, over all tokens
    peaks: dict[str, float]  # the largest of any token


class Learner:
    """A policy under training; every rank of the layout holds one and calls its methods together."""

    def __init__(self, cfg: Config, shape: ModelShape, layout: Layout) -> None:
        self._cfg, self.shape, self.layout = cfg, shape, layout
        self.policy = build_model(shape, cfg)
        config = self.policy.config
        ddp = DistributedDataParallelConfig(
            use_distributed_optimizer=cfg.parallel.distributed_optimizer,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=cfg.parallel.overlap_grad_reduce,
            overlap_param_gather=cfg.parallel.overlap_param_gather,
        )
        self._chunks = [
            # Buckets overlap with a backward pass; only the last chunk's begins with nothing left to hide.
            DistributedDataParallel(config, ddp, chunk, disable_bucketing=i > 0)
            for i, chunk in enumerate(self.policy)
        ]
        config.finalize_model_grads_func = finalize_model_grads
        config.no_sync_func = cast(Any, _one_or_all([chunk.no_sync for chunk in self._chunks]))
        self.optimizer = get_megatron_optimizer(_optimizer_config(cfg), [*self._chunks])
        config.grad_scale_func = self.optimizer.scale_loss
        self.scheduler = _scheduler(self.optimizer, cfg.optimizer)
        self.reference: Policy | None = None
        self.iteration = 0  # iterations this policy has been improved by

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained; None where all weights are."""
        return self._cfg.lora if self._cfg.lora.rank else None

    def refresh(self) -> None:
        """Tell the optimizer that the policy's parameters were replaced (its fp32 copies are renewed)."""
        self.optimizer.reload_model_params()

    def synchronize(self) -> None:
        """Wait for parameters that are on their way from other ranks; to be called before they are read."""
        if self._cfg.parallel.overlap_param_gather:
            for chunk in self._chunks:
                chunk.start_param_sync(force_sync=True)

    def keep_reference(self) -> None:
        """Freeze a copy of the present policy, which `score(reference=True)` and the KL term refer to.

        With adapters it is the policy without them, and there is nothing to copy.
        """
        if self.lora:
            self.reference = self.policy
            return
        self.reference = build_model(self.shape, self._cfg)
        self.reference.load_state_dict(self.policy.state_dict())
        self.reference.requires_grad_(False)

    def pack(self, steps: Sequence[Step], rows: Int64) -> list[MicroBatch]:
        """This rank's micro-batches of `rows` of `steps`."""
        return pack(steps, rows, self._cfg.batch, self.layout.split, self.shape.cost)

    def score(self, batches: Sequence[MicroBatch], reference: bool = False) -> list[Float32]:
        """Log-probability of each response token of this rank's micro-batches, each float32 [n]."""
        model = self.reference if reference else self.policy
        assert model is not None, "no reference policy was kept"

        def keep(index: int, batch: MicroBatch, output: Tensor, non_loss_data: bool) -> Tensor:
            return output[0].float()

        model.eval()
        with torch.no_grad(), lora.switched(model, on=not reference):
            found: list[Tensor] = self._run(list(model), batches, keep, forward_only=True)
        model.train()
        sizes = [int(batch.lengths.sum()) for batch in batches]
        if not self.layout.last_stage:
            found = [torch.empty(size, device=self.layout.device) for size in sizes]
        whole = torch.cat(found)
        self._from_last_stage(whole)
        return [scores.cpu().numpy() for scores in whole.split(sizes)]

    def update(
        self,
        batches: Sequence[MicroBatch],
        loss: Loss,
        accept: Callable[[dict[str, float]], None] = lambda means: None,
    ) -> UpdateStats:
        """One optimizer update on `loss` over this rank's micro-batches (the same number on every rank).

        The denominator is the count (of tokens, unless the loss says another) over all ranks and
        micro-batches: no split changes the gradient.
        `accept` sees the metrics' means, the same on every rank, before the policy changes; what it raises
        leaves the policy untouched.
        """
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports: list[Report] = self._run(self._chunks, batches, partial(self._reduced, loss))
        means, peaks = self._metrics(reports)
        tokens = means.pop("tokens")
        accept(means)
        _, grad_norm, _ = cast(tuple[bool, float, int], self.optimizer.step())
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.scheduler.step(1)
        return UpdateStats(int(tokens), float(grad_norm), lr, means, peaks)

    def _run(
        self,
        chunks: Sequence[Any],
        batches: Sequence[MicroBatch],
        reduce: Callable[..., Any],
        forward_only: bool = False,
    ) -> list[Any]:
        """megatron's schedule over `batches`: what `reduce` made of each on the last stage, else nothing."""
        config = self.policy.config
        ways = self.layout.context * (self.layout.tensor if config.sequence_parallel else 1)
        shapes = [[b.tokens.shape[1] // ways, len(b.tokens), config.hidden_size] for b in batches]
        return get_forward_backward_func()(
            forward_step_func=partial(self._forward_step, reduce=reduce),
            data_iterator=_one_or_all([iter(enumerate(batches)) for _ in chunks]),
            model=_one_or_all(list(chunks)),
            num_microbatches=len(batches),
            seq_length=1,  # the communicator knows the shapes
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
            p2p_communicator=Communicator(self.layout.pipeline_group, config, shapes),
            pg_collection=self.layout.groups,
        )

    def _forward_step(
        self, batches: Iterator[tuple[int, MicroBatch]], model: Any, reduce: Callable[..., Any]
    ) -> tuple[Tensor, Callable[..., Any]]:
        index, batch = next(batches)
        inputs = self._inputs(batch)
        output = model(
            inputs.tokens,
            inputs.positions,
            None,
            labels=inputs.labels,
            loss_mask=inputs.mask,
            packed_seq_params=inputs.columns,
        )

        def on_last_stage(output: Tensor, **options: Any) -> Any:
            if inputs.places is not None:
                group = self.layout.context_group
                output = context.join(output, inputs.places, int(batch.lengths.sum()), group)
            return reduce(index, batch, output, **options)

        return output, on_last_stage

    def _inputs(self, batch: MicroBatch) -> _Inputs:
        """The columns of `batch` that this rank holds."""
        ranks, rank, device = self.layout.context, self.layout.context_rank, self.layout.device
        held = context.indices(context.spans(batch.starts, ranks, rank))
        positions = np.arange(batch.tokens.shape[1]) - np.repeat(batch.starts[:-1], np.diff(batch.starts))
        mask = batch.mask[:, held]
        places = None
        if ranks > 1:
            numbers = batch.mask.cumsum().reshape(batch.mask.shape) - 1
            places = torch.from_numpy(numbers[:, held][mask]).to(device)
        if not uses_transformer_engine(self._cfg):
            columns = context.columns(batch.starts, ranks, rank, device)
        elif self._cfg.batch.packed:
            columns = context.packed_for_transformer_engine(batch.starts, device)
        else:
            columns = None
        tokens, labels, where = (
            torch.from_numpy(np.ascontiguousarray(x)).to(device)
            for x in (batch.tokens[:, held], batch.labels[:, held], mask)
        )
        order = torch.from_numpy(positions[held]).to(device).expand_as(tokens)
        return _Inputs(tokens, labels, where, order, columns, places)

    def _reduced(
        self, loss: Loss, index: int, batch: MicroBatch, output: Tensor
    ) -> tuple[Tensor, Tensor, Report]:
        """The loss for megatron: its sum, its share of the denominator, and what is reported."""
        total, report = loss(index, batch, output[0], output[1])
        total = total * batch.weight
        tokens = int(batch.lengths.sum())
        count = tokens if report.count is None else report.count
        counts = torch.tensor([tokens, count], dtype=torch.int, device=output.device) * int(batch.weight)
        losses = {name: value.detach() * batch.weight for name, value in report.losses.items()}
        losses["loss/total"] = total.detach()
        sums = {name: value.detach() * batch.weight for name, value in report.sums.items()}
        sums |= losses | {"tokens": counts[0], "count": counts[1]}
        peaks = report.peaks
        if not batch.weight:
            peaks = {name: torch.full_like(value, -torch.inf) for name, value in peaks.items()}
        # Context-parallel ranks compute the same loss, and megatron adds up their counts.
        counted = counts[1] if self.layout.context_rank == 0 else torch.zeros_like(counts[1])
        return total, counted, Report(sums, peaks, losses)

    def _metrics(self, reports: Sequence[Report]) -> tuple[dict[str, float], dict[str, float]]:
        """Token means (and `tokens`, their number) and peaks over all rows, the same on every rank."""
        box: list[Any] = [None]
        if self.layout.last_stage:
            sums = {name: float(sum(r.sums[name] for r in reports)) for name in reports[0].sums}
            peaks = {name: max(float(r.peaks[name]) for r in reports) for name in reports[0].peaks}
            sums, peaks = self._reduce(sums, dist.ReduceOp.SUM), self._reduce(peaks, dist.ReduceOp.MAX)
            tokens, count = sums.pop("tokens"), sums.pop("count")
            losses = reports[0].losses
            means = {name: value / (count if name in losses else tokens) for name, value in sums.items()}
            box = [(means | {"tokens": tokens}, peaks)]
        if self.layout.pipeline > 1:
            group = self.layout.pipeline_group
            dist.broadcast_object_list(box, group_src=self.layout.pipeline - 1, group=group)
        return box[0]

    def _reduce(self, values: dict[str, float], operation: dist.ReduceOp.RedOpType) -> dict[str, float]:
        """`values` over the data-parallel ranks."""
        if not values:
            return {}
        reduced = torch.tensor(list(values.values()), dtype=torch.float64, device=self.layout.device)
        dist.all_reduce(reduced, operation, self.layout.data_group)
        return dict(zip(values, reduced.tolist(), strict=True))

    def _from_last_stage(self, tensor: Tensor) -> None:
        """Overwrite `tensor` with the last pipeline stage's."""
        if self.layout.pipeline > 1:
            dist.broadcast(tensor, group_src=self.layout.pipeline - 1, group=self.layout.pipeline_group)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a model reads of a micro-batch: s are the columns that this rank holds."""

    tokens: Tensor  # [b, s]
    labels: Tensor  # [b, s]
    mask: Tensor  # [b, s]
    positions: Tensor  # [b, s] in the sequence
    columns: PackedSeqParams | context.Columns | None
    places: Tensor | None  # [k] where this rank's response tokens stand among all [n]; None where it has all


def _one_or_all(values: list[T]) -> T | list[T]:
    """megatron takes a list only where a stage has several chunks."""
    return values[0] if len(values) == 1 else values


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
        overlap_param_gather=cfg.parallel.overlap_param_gather,
        optimizer_cpu_offload=cfg.parallel.offload_optimizer > 0,
        optimizer_offload_fraction=cfg.parallel.offload_optimizer,
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
