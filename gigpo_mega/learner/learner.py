"""The learner: a megatron-core policy, its optimizer, and how micro-batches become scores or an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from gigpo_mega.batching import MicroBatch, Sequences, Share, build, deal, pack
from gigpo_mega.config import Config, LoraConfig
from gigpo_mega.learner import context, lora, torch_adam
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.model import Policy, build_model
from gigpo_mega.learner.pipeline import Communicator
from gigpo_mega.learner.schedule import learning_rate
from gigpo_mega.learner.stack import stack
from gigpo_mega.learner.transfer import on_device
from gigpo_mega.shape import ModelShape
from gigpo_mega.types import Float32, Int64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Report:
    """What a loss measured on one micro-batch."""

    sums: dict[str, Tensor]  # over tokens; they become token means
    peaks: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # the largest of any token
    losses: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # divided as the loss is
    count: int | None = None  # what the loss is divided by, summed over micro-batches and ranks; None: tokens
    kept: Tensor | None = None  # [n] a value of each response token that the caller of `update` wants back


Output = tuple[Tensor, Tensor]
"""Log-probability and entropy of a micro-batch's response tokens, each [n]."""
Loss = Callable[[T, Tensor, Tensor], tuple[Tensor, Report]]
"""(what the loss reads of a micro-batch, logprob [n], entropy [n]) -> (sum of losses, report)."""


class NonFiniteUpdate(Exception):
    """The loss or a gradient of an update is NaN or infinite; the policy was not touched, on any rank."""


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """One optimizer update, the same on every rank but for what was `kept`."""

    tokens: int  # computed, over all ranks
    count: int  # the denominator of the loss
    grad_norm: float  # before clipping
    lr: float
    losses: dict[str, float]  # the loss and its parts, divided by `count`
    means: dict[str, float]  # of other metrics, over all `tokens`
    peaks: dict[str, float]  # the largest of any token
    kept: list[Float32] = field(compare=False)  # by micro-batch of this rank, on last pipeline stages alone


class Learner:
    """A policy under training; every rank of the layout holds one and calls its methods together.

    Its weights are random, or with `empty` to be loaded (gigpo_mega.weights.live, then `refresh`).
    """

    def __init__(self, cfg: Config, shape: ModelShape, layout: Layout, empty: bool = False) -> None:
        self._cfg, self.shape, self.layout = cfg, shape, layout
        self.stack = stack(cfg)
        self.policy = build_model(shape, cfg, empty)
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
        self.apply_optimizer_settings()
        self.reference: Policy | None = None
        self.iteration = 0  # iterations this policy has been improved by
        self.updates = 0  # optimizer updates it has been improved by

    @property
    def distributed_optimizer(self) -> bool:
        """Whether optimizer state is sharded over data-parallel ranks."""
        return self._cfg.parallel.distributed_optimizer

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained; None if all weights are."""
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
        self.reference = build_model(self.shape, self._cfg, empty=True)
        self.reference.load_state_dict(self.policy.state_dict())
        self.reference.requires_grad_(False)

    def pack(self, sequences: Sequences, rows: Int64) -> list[MicroBatch]:
        """This rank's micro-batches of the `sequences` at `rows`."""
        return pack(sequences, rows, self._cfg.batch, self.layout.split, self.shape.cost)

    def deal(self, rows: Int64, prompts: Int64, responses: Int64) -> list[list[Share]]:
        """The micro-batches of `rows` by data-parallel rank (`batching.deal`)."""
        return deal(rows, prompts, responses, self._cfg.batch, self.layout.split, self.shape.cost)

    def build(self, sequences: Sequences, dealt: Sequence[Sequence[Share]]) -> list[MicroBatch]:
        """This rank's micro-batches of those `dealt`."""
        mine = dealt[self.layout.data_rank]
        return [build(sequences, share, self._cfg.batch, self.layout.split) for share in mine]

    def score(self, batches: Sequence[MicroBatch], reference: bool = False) -> list[Float32]:
        """Log-probability of each response token of this rank's micro-batches, each float32 [n]."""
        model = self.reference if reference else self.policy
        assert model is not None, "no reference policy was kept"

        def keep(batch: MicroBatch, target: None, output: Output, non_loss_data: bool) -> Tensor:
            return output[0].float()

        model.eval()
        with torch.no_grad(), lora.switched(model, on=not reference):
            unlabeled = [(batch, None) for batch in batches]
            found: list[Tensor] = self._run(list(model), unlabeled, keep, forward_only=True)
        model.train()
        sizes = [int(batch.lengths.sum()) for batch in batches]
        if not self.layout.last_stage:
            found = [torch.empty(size, device=self.layout.device) for size in sizes]
        whole = torch.cat(found)
        if self.layout.pipeline > 1:
            dist.broadcast(whole, group_src=self.layout.pipeline - 1, group=self.layout.pipeline_group)
        return [scores.cpu().numpy() for scores in whole.split(sizes)]

    def update(
        self,
        batches: Sequence[tuple[MicroBatch, T]],
        loss: Loss[T],
        accept: Callable[[dict[str, float]], None] | None = None,
        progress: float = 0.0,
    ) -> UpdateStats:
        """One optimizer update on `loss` over this rank's micro-batches (the same number on every rank), each
        beside what the loss reads of it.

        The denominator is the count (of tokens, unless the loss says another) over all ranks and
        micro-batches: no split changes the gradient.
        `accept` sees losses and the metrics' means, the same on every rank and perhaps not finite, before the
        policy changes; what it raises leaves the policy untouched. Raises NonFiniteUpdate, which does so too,
        on every rank if the loss or a gradient is not finite on any. `progress` of the run, from 0 to 1, is
        what a learning rate without `decay_updates` follows.
        """
        reports = self.accumulate(batches, loss)
        sums, losses, means, peaks = self._metrics(reports)
        if accept is not None:
            accept(losses | means)
        self._check_finite(losses["loss/total"])
        lr = learning_rate(self._cfg.optimizer, self.updates, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
        _, grad_norm, _ = cast(tuple[bool, float, int], self.optimizer.step())
        self.updates += 1
        tokens, count = int(sums["tokens"]), int(sums["count"])
        kept = [report.kept.cpu().numpy() for report in reports if report.kept is not None]
        return UpdateStats(tokens, count, float(grad_norm), lr, losses, means, peaks, kept)

    def accumulate(self, batches: Sequence[tuple[MicroBatch, T]], loss: Loss[T]) -> list[Report]:
        """Make the gradients of an update; returns what the last stage measured on each micro-batch."""
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run(self._chunks, batches, partial(self._reduced, loss))

    def _check_finite(self, loss: float) -> None:
        buffers = [buffer for chunk in self._chunks for buffer in cast(Any, chunk).buffers]
        finite = finite_everywhere(buffer.grad_data for buffer in buffers)
        if not math.isfinite(loss):
            raise NonFiniteUpdate(f"the loss is {loss}")
        if not finite:
            raise NonFiniteUpdate(f"a gradient is not finite (loss {loss:.3g})")

    def apply_optimizer_settings(self) -> None:
        """Set what the configuration says of Adam: at the start, and after a checkpoint brought its own.

        megatron leaves the multiplier that spares biases and norms from weight decay to its own scheduler.
        """
        o = self._cfg.optimizer
        torch_adam.fuse(self.optimizer)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = o.weight_decay * group.get("wd_mult", 1.0)
            group["betas"], group["eps"] = (o.beta1, o.beta2), o.epsilon

    def _run(
        self,
        chunks: Sequence[Any],
        batches: Sequence[tuple[MicroBatch, Any]],
        reduce: Callable[..., Any],
        forward_only: bool = False,
    ) -> list[Any]:
        """megatron's schedule over `batches`: what `reduce` made of each on the last stage, else nothing."""
        config = self.policy.config
        ways = self.layout.context * (self.layout.tensor if config.sequence_parallel else 1)
        shapes = [[b.tokens.shape[1] // ways, len(b.tokens), config.hidden_size] for b, _ in batches]
        return get_forward_backward_func()(
            forward_step_func=partial(self._forward_step, reduce=reduce),
            data_iterator=_one_or_all([iter(batches) for _ in chunks]),
            model=_one_or_all(list(chunks)),
            num_microbatches=len(batches),
            seq_length=1,  # ignored: the communicator is given all shapes
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
            p2p_communicator=Communicator(self.layout.pipeline_group, config, shapes),
            pg_collection=self.layout.groups,
        )

    def _forward_step(
        self, batches: Iterator[tuple[MicroBatch, Any]], model: Any, reduce: Callable[..., Any]
    ) -> tuple[Tensor, Callable[..., Any]]:
        batch, target = next(batches)
        inputs = self._inputs(batch)
        output = model(
            inputs.tokens,
            inputs.positions,
            None,
            labels=inputs.labels,
            loss_mask=inputs.chosen,
            packed_seq_params=inputs.columns,
        )

        def on_last_stage(output: Output, **options: Any) -> Any:
            if inputs.places is not None:
                group, total = self.layout.context_group, int(batch.lengths.sum())
                logprob, entropy = (context.join(part, inputs.places, total, group) for part in output)
                output = logprob, entropy
            return reduce(batch, target, output, **options)

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
            places = on_device(numbers[:, held][mask], device)
        if self.stack.layers == "local":
            columns = context.columns(batch.starts, ranks, rank, device)
        elif self._cfg.batch.packed:
            columns = context.packed_for_transformer_engine(batch.starts, device)
        else:
            columns = None
        # Selected by number, not by the mask: a device would first have to tell the host how many there are.
        row, column = mask.nonzero()
        tokens, labels, chosen = (
            on_device(x, device)
            for x in (batch.tokens[:, held], batch.labels[:, held][mask], column * len(mask) + row)
        )
        order = on_device(positions[held], device).expand_as(tokens)
        return _Inputs(tokens, labels, chosen, order, columns, places)

    def _reduced(
        self, loss: Loss[T], batch: MicroBatch, target: T, output: Output
    ) -> tuple[Tensor, Tensor, Report]:
        """The loss for megatron: its sum, its share of the denominator, and what is reported."""
        total, report = loss(target, *output)
        total = total * batch.weight
        tokens = int(batch.lengths.sum())
        count = tokens if report.count is None else report.count
        counts = on_device(np.array([tokens, count], np.int32) * int(batch.weight), total.device)
        losses = {name: value.detach() * batch.weight for name, value in report.losses.items()}
        losses["loss/total"] = total.detach()
        sums = {name: value.detach() * batch.weight for name, value in report.sums.items()}
        sums |= losses | {"tokens": counts[0], "count": counts[1]}
        peaks = report.peaks
        if not batch.weight:
            peaks = {name: torch.full_like(value, -torch.inf) for name, value in peaks.items()}
        # Context-parallel ranks compute the same loss, and megatron adds up their counts.
        counted = counts[1] if self.layout.context_rank == 0 else torch.zeros_like(counts[1])
        return total, counted, Report(sums, peaks, losses, kept=report.kept)

    def _metrics(self, reports: Sequence[Report]) -> list[dict[str, float]]:
        """Sums (`tokens`, `count`), losses, token means and peaks over all rows, the same on every rank."""
        box: list[Any] = [None]
        if self.layout.last_stage:
            sums = {name: float(sum(r.sums[name] for r in reports)) for name in reports[0].sums}
            peaks = {name: max(float(r.peaks[name]) for r in reports) for name in reports[0].peaks}
            sums, peaks = self._reduce(sums, dist.ReduceOp.SUM), self._reduce(peaks, dist.ReduceOp.MAX)
            totals = {name: sums.pop(name) for name in ("tokens", "count")}
            losses = {name: sums.pop(name) / totals["count"] for name in reports[0].losses}
            means = {name: value / totals["tokens"] for name, value in sums.items()}
            box = [[totals, losses, means, peaks]]
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


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a model reads of a micro-batch: s are the columns that this rank holds."""

    tokens: Tensor  # [b, s]
    labels: Tensor  # [k] the response tokens among the next ones, row-major
    chosen: Tensor  # [k] where their hidden states stand in [s, b]
    positions: Tensor  # [b, s] in the sequence
    columns: PackedSeqParams | context.HeldColumns | None
    places: Tensor | None  # [k] where this rank's response tokens stand among all [n]; None if it has all


def finite_everywhere(tensors: Iterable[Tensor]) -> bool:
    """Whether no rank's `tensors` hold NaN or infinity; all ranks call this together.

    NaN is both the least and the greatest value of what it is in: `isfinite` of all would take memory for
    nearly two more tensors.
    """
    ends = [end.float() for tensor in tensors for end in tensor.detach().aminmax()]
    finite = torch.stack(ends).isfinite().all().to(torch.int32)
    dist.all_reduce(finite, dist.ReduceOp.MIN)
    return bool(finite)


def _one_or_all(values: list[T]) -> T | list[T]:
    """megatron takes a list only if a stage has several chunks."""
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
    )
