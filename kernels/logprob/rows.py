"""Softmax statistics and gradients of rows of logits in torch; both overwrite the logits they are given."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.logprob.statistics import Rows


def statistics(logits: Tensor, rows: Rows) -> Tensor:
    """Statistics [4, t] of float32 logits [t, v], none of them padding."""
    x = logits.mul_(rows.scale[:, None])
    held, column = _held(rows)
    label = x.gather(1, column[:, None])[:, 0].where(held, -torch.inf)
    peak = x.amax(1)
    weight = x.sub_(peak[:, None]).exp2()
    total = weight.sum(1)
    moment = x.mul_(weight).sum(1) if rows.entropy else torch.zeros_like(total)
    return torch.stack([peak, total, moment, label])


def gradients(logits: Tensor, rows: Rows, slopes: Tensor, dtype: torch.dtype) -> Tensor:
    """d_logits of float32 logits [t, v], none of them padding, in their place: float32, whatever `dtype`."""
    log_sum, one, constant, slope = slopes[:, :, None]
    x = logits.mul_(rows.scale[:, None]).sub_(log_sum)
    weight = x.exp2()
    torch.mul(weight, x.mul_(slope).add_(constant) if rows.entropy else constant, out=x)
    held, column = _held(rows)
    return x.scatter_add_(1, column[:, None], one.where(held[:, None], 0.0))


def _held(rows: Rows) -> tuple[Tensor, Tensor]:
    held = (rows.target >= 0) & (rows.target < rows.columns)
    return held, rows.target.clamp(0, rows.columns - 1)
