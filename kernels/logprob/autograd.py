"""The differentiable operation: forward keeps one number per token, backward computes the logits again."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.logprob.statistics import Rows, finish, merge_ranks, slopes


class ShardKernels(Protocol):
    """What `chunked` and `triton` compute for a shard of the vocabulary."""

    def statistics(self, hidden: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        """Statistics [4, T] of hidden [T, H] @ weight [V, H].T."""
        ...

    def gradients(
        self, hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor,
        d_hidden: Tensor | None, d_weight: Tensor | None,
    ) -> None:  # fmt: skip
        """Write d_hidden [T, H] and add to d_weight [V, H], if they are given."""
        ...


class LinearLogProb(torch.autograd.Function):
    """(hidden, weight) to (log-prob, entropy)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: Rows,
        kernels: ShardKernels,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # the gradient of an output that is not used stays None
        statistics = kernels.statistics(hidden, weight, rows)
        logprob, entropy, log_sum = finish(statistics if group is None else merge_ranks(statistics, group))
        if not rows.entropy:
            entropy = entropy.new_empty(0)
            ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(hidden, weight, log_sum, entropy)
        ctx.rows, ctx.kernels = rows, kernels
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
        ctx.kernels.gradients(hidden, weight, rows, table, d_hidden, d_weight)
        if ctx.main_grad is not None and wants_weight:
            d_weight = None  # autograd must not add what main_grad has already
            # Megatron's convention for a gradient that is in `main_grad`: a flag, and a gradient for its hook
            # to skip (one zero, expanded to [V, H]). A weight shared with the embedding of the same pipeline
            # stage (`zero_out_wgrad`) needs neither: the hook adds the embedding's gradient.
            if hasattr(weight, "grad_added_to_main_grad") and not getattr(weight, "zero_out_wgrad", False):
                weight.grad_added_to_main_grad = True
                weight.grad = weight.new_zeros(()).expand_as(weight)
        return d_hidden, d_weight, None, None, None
