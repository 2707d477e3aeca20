"""The differentiable operations: forward keeps one number per token, backward computes the logits again."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.logprob.statistics import Rows, finish, merge_ranks, slopes


class Backend(Protocol):
    """What `chunked` and `triton` do for a shard of the vocabulary."""

    def statistics(self, hidden: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        """Statistics [4, T] of hidden [T, H] @ weight [V, H].T."""
        ...

    def gradients(
        self, hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor,
        d_hidden: Tensor | None, d_weight: Tensor | None,
    ) -> None:  # fmt: skip
        """Write d_hidden [T, H] and add to d_weight [V, H], where they are given."""
        ...

    def logits_statistics(self, logits: Tensor, rows: Rows) -> Tensor:
        """Statistics [4, T] of logits [T, V], which stay as they are."""
        ...

    def logits_gradients(self, logits: Tensor, rows: Rows, slopes: Tensor, out: Tensor) -> None:
        """Write d_logits [T, V] to `out`, which may be `logits`."""
        ...


class LinearLogProb(torch.autograd.Function):
    """(hidden, weight) to (log-prob, entropy)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: Rows,
        backend: Backend,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        logprob, entropy, log_sum = _finish(ctx, backend.statistics(hidden, weight, rows), rows, group)
        ctx.save_for_backward(hidden, weight, log_sum, entropy)
        ctx.rows, ctx.backend = rows, backend
        ctx.main_grad = getattr(weight, "main_grad", None)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, log_sum, entropy = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = ctx.main_grad if wants_weight else None
        if wants_weight and d_weight is None:
            d_weight = torch.zeros_like(weight)
        rows, table = slopes(ctx.rows, log_sum, entropy, *grads)
        ctx.backend.gradients(hidden, weight, rows, table, d_hidden, d_weight)
        if ctx.main_grad is not None and wants_weight:
            d_weight = None  # autograd must not add again what main_grad has
            _tell_data_parallel(weight)
        return d_hidden, d_weight, None, None, None


class LogitsLogProb(torch.autograd.Function):
    """logits to (log-prob, entropy); the gradient may take the logits' place."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Rows,
        backend: Backend,
        group: dist.ProcessGroup | None,
        inplace: bool,
    ) -> tuple[Tensor, Tensor]:
        logprob, entropy, log_sum = _finish(ctx, backend.logits_statistics(logits, rows), rows, group)
        ctx.save_for_backward(logits, log_sum, entropy)
        ctx.rows, ctx.backend, ctx.inplace = rows, backend, inplace
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None, None, None, None]:
        logits, log_sum, entropy = ctx.saved_tensors
        rows, table = slopes(ctx.rows, log_sum, entropy, *grads)
        out = logits.detach() if ctx.inplace else torch.empty_like(logits)
        ctx.backend.logits_gradients(logits.detach(), rows, table, out)
        if ctx.inplace:
            # Kernels write behind autograd's back; whoever saved these logits must be told.
            torch.autograd.graph.increment_version(logits)
        return out, None, None, None, None


def _tell_data_parallel(weight: Tensor) -> None:
    """Leave megatron's hook a gradient to skip, as is its convention where `main_grad` has it all.

    That gradient is one zero, seen as [V, H]. A weight shared with the embedding of the same pipeline stage
    (`zero_out_wgrad`) needs none: the hook adds the embedding's.
    """
    if hasattr(weight, "grad_added_to_main_grad") and not getattr(weight, "zero_out_wgrad", False):
        weight.grad_added_to_main_grad = True  # pyright: ignore[reportAttributeAccessIssue]
        weight.grad = weight.new_zeros(()).expand_as(weight)


def _finish(
    ctx: Any, statistics: Tensor, rows: Rows, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`finish` over the ranks of `group`; gradients that nobody asked for stay None."""
    ctx.set_materialize_grads(False)
    logprob, entropy, log_sum = finish(statistics if group is None else merge_ranks(statistics, group))
    if not rows.entropy:
        entropy = entropy.new_empty(0)
        ctx.mark_non_differentiable(entropy)
    return logprob, entropy, log_sum
