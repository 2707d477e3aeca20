"""Softmax statistics of a row of logits: four numbers per token, mergeable over tiles, slices and ranks.

Everything is in base 2, because the hardware's exponential is: x = logit * log2(e) / temperature. Per token a
part of the vocabulary gives `peak` = max x, `total` = sum 2^(x - peak), `moment` = sum 2^(x - peak)
(x - peak) and `label` = x of the target, -inf if this part does not hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

LN2 = math.log(2.0)
FLOOR = -1e30  # stands for a masked logit: finite, so that 0 * x stays 0


@dataclass(frozen=True, slots=True)
class Rows:
    """The tokens of a call, as seen by one shard of the vocabulary."""

    scale: Tensor  # float32 [T], log2(e) / temperature
    target: Tensor  # int64 [T], column of this shard; outside [0, columns) if another rank holds it
    columns: int  # real columns of this shard; the others, after them, are padding
    entropy: bool

    @classmethod
    def of(
        cls, target: Tensor, temperature: float | Tensor, start: int, width: int, vocab: int | None,
        entropy: bool,
    ) -> Self:  # fmt: skip
        """Rows of a shard that holds columns [start, start + width) of a vocabulary of `vocab` real ones."""
        if isinstance(temperature, Tensor):
            scale = (1 / LN2) / temperature.detach().float()
        else:
            scale = torch.full(target.shape, 1 / (LN2 * temperature), device=target.device)
        columns = width if vocab is None else min(max(vocab - start, 0), width)
        return cls(scale, target - start, columns, entropy)

    def part(self, tokens: slice, columns: slice) -> Self:
        """The rows of a block of tokens and a slice of columns."""
        return replace(
            self,
            scale=self.scale[tokens],
            target=self.target[tokens] - columns.start,
            columns=columns.stop - columns.start,
        )


def no_statistics(parts: int, like: Tensor) -> Tensor:
    """Statistics [parts, 4, T] of no logits at all, for the tokens of `like` [T, ...]."""
    nothing = torch.tensor([FLOOR, 0.0, 0.0, -torch.inf], device=like.device)
    return nothing[None, :, None].repeat(parts, 1, len(like))


def merge(parts: Tensor) -> Tensor:
    """Statistics [P, 4, T] of parts of the vocabulary to those of the whole [4, T], added in order of P."""
    peak, label = parts[:, 0].amax(0), parts[:, 3].amax(0)
    total, moment = torch.zeros_like(peak), torch.zeros_like(peak)
    for its_peak, its_total, its_moment, _ in parts:
        below = its_peak - peak
        rescale = below.exp2()
        total = total + rescale * its_total
        moment = moment + rescale * (its_moment + below * its_total)
    return torch.stack([peak, total, moment, label])


def merge_ranks(statistics: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Statistics [4, T] of the whole vocabulary from one gather; the same bits on every rank."""
    parts = statistics.new_empty(dist.get_world_size(group), *statistics.shape)
    # gloo does not support an output of [ranks, ...].
    dist.all_gather_into_tensor(parts.flatten(0, 1), statistics.contiguous(), group)
    return merge(parts)


def finish(statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probability [T], entropy [T], log2 of the sum of exponentials [2, T]) from statistics [4, T].

    A log-probability is at most 0: a label logit that was rounded up cannot make it positive. The sum is its
    rounded value and the rounding error.
    """
    peak, total, moment, label = statistics
    log_total = total.log2()
    logprob = LN2 * (label - peak - log_total).clamp(max=0.0)
    entropy = LN2 * (log_total - moment / total)
    log_sum = peak + log_total
    return logprob, entropy, torch.stack([log_sum, peak - log_sum + log_total])


def slopes(
    rows: Rows, log_sum: Tensor, entropy: Tensor, d_logprob: Tensor | None, d_entropy: Tensor | None
) -> tuple[Rows, Tensor]:
    """Rows for backward and [4, T] (log_sum, one, constant, slope): d_logits as a multiply-add per logit.

    With y = x - log_sum, d_logit = one * [column is the target] + 2^y (constant + slope * y). That is the
    derivative of d_logprob * log p(target) + d_entropy * entropy, whose softmax part is
    -p (d_logprob + d_entropy (log p + entropy)) / temperature. Without d_entropy (no loss reads the entropy)
    the slope is 0 and the rows returned are without entropy, which saves its part. The rounding error of
    log_sum [2, T] is corrected in the factors, at no cost per logit.
    """
    log_sum, rest = log_sum
    one = slope = torch.zeros_like(log_sum)
    if d_logprob is not None:
        one = LN2 * rows.scale * d_logprob
    if not rows.entropy or d_entropy is None:
        return replace(rows, entropy=False), torch.stack([log_sum, one, -one * (-rest).exp2(), slope])
    pull = LN2 * rows.scale * d_entropy
    slope = -LN2 * pull * (-rest).exp2()
    constant = -(one + pull * entropy) * (-rest).exp2() - slope * rest
    return rows, torch.stack([log_sum, one, constant, slope])
