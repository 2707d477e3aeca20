"""Linear log-prob in plain torch with float32 logits of all tokens: what other backends must agree with."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _VocabularyLogProb(torch.autograd.Function):
    """log p(target) and entropy from a vocabulary shard of the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, start: int, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        local = target - start
        owned = (local >= 0) & (local < logits.shape[1])
        label = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        label = torch.where(owned, label, torch.zeros_like(label))
        peak = logits.amax(1)
        if group is not None:
            dist.all_reduce(peak, dist.ReduceOp.MAX, group)
        shifted = (logits - peak[:, None]).clamp(min=_FLOOR)
        weight = shifted.exp()
        statistics = torch.stack([weight.sum(1), (weight * shifted).sum(1), label, owned.float()])
        if group is not None:
            statistics = _sum_in_rank_order(statistics, group)
        total, moment, label, owners = statistics
        log_total = total.log()
        logprob = torch.where(owners > 0, label - peak - log_total, -torch.inf)
        entropy = log_total - moment / total
        probability = weight / total[:, None]
        ctx.save_for_backward(probability, shifted - log_total[:, None], entropy, local, owned)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        d_logprob, d_entropy = grads
        probability, log_probability, entropy, local, owned = ctx.saved_tensors
        d_logits = -probability * (
            d_logprob[:, None] + d_entropy[:, None] * (log_probability + entropy[:, None])
        )
        rows = owned.nonzero()[:, 0]
        d_logits[rows, local[rows]] += d_logprob[rows]
        return d_logits, None, None, None


_FLOOR = -1e30  # keeps 0 * -inf, of masked padding, out of the entropy


def _sum_in_rank_order(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over `group`, added in rank order so that every rank gets the same bits."""
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, value, group)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def linear_logprob(
    hidden: Tensor, weight: Tensor, target: Tensor, *, temperature: float | Tensor = 1.0,
    vocab_start: int = 0, vocab_size: int | None = None, group: dist.ProcessGroup | None = None,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `kernels.logprob.linear_logprob` documents."""
    logits = hidden.float() @ weight.float().T
    logits = logits / (temperature[:, None] if isinstance(temperature, Tensor) else temperature)
    if vocab_size is not None and vocab_start + logits.shape[1] > vocab_size:
        padding = torch.arange(logits.shape[1], device=logits.device) + vocab_start >= vocab_size
        logits = logits.masked_fill(padding, -torch.inf)
    result = _VocabularyLogProb.apply(logits, target, vocab_start, group)
    assert result is not None
    return result if entropy else (result[0], result[1].new_empty(0))
