"""The policy loss on flat tokens (Eq. 9), as `cfg.objective` words it for `kernels.policy_loss`.

Losses and metrics are SUMS: the caller divides by a count over all ranks and micro-batches, so that splitting
a batch differently can't change the gradient. Shape letters: R rows (responses), T tokens (all rows',
concatenated).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gigpo_mega.config import Aggregation, ObjectiveConfig
from gigpo_mega.types import Float32, Int64
from kernels import policy_loss as kernel


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    cfg: ObjectiveConfig,
    ref_logprob: Tensor | None = None,
    entropy: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: kernel.Backend = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """`sum_t weight_t (surrogate_t + kl_coef KL_t - entropy_coef H_t)`, and sums of metrics.

    All tensors are [T] float but `lengths`, int64 [R], which the ratio of a sequence needs; `weight` is 0 on
    padding. Metrics are those of `kernels.policy_loss.policy_loss`. Raises ValueError if `cfg` weighs a term
    whose tensor is missing.
    """
    if cfg.kl_coef and ref_logprob is None:
        raise ValueError(f"objective.kl_coef {cfg.kl_coef} needs a reference policy: give one or set it to 0")
    if cfg.entropy_coef and entropy is None:
        raise ValueError(f"objective.entropy_coef {cfg.entropy_coef} needs entropy: give it or set it to 0")
    row_log_ratio = None
    if cfg.ratio == "sequence":
        if lengths is None:
            raise ValueError("objective.ratio sequence needs the rows' lengths: give them or set it to token")
        row_log_ratio = sequence_log_ratio(logprob.detach(), old_logprob, weight, lengths)
    return kernel.policy_loss(
        logprob, old_logprob, advantage, weight,
        clip_low=cfg.clip_low, clip_high=cfg.clip_high, dual_clip=cfg.dual_clip,
        ref_logprob=ref_logprob, kl_coef=cfg.kl_coef, kl_estimator=cfg.kl_estimator,
        entropy=entropy, entropy_coef=cfg.entropy_coef, row_log_ratio=row_log_ratio,
        backend=backend,
    )  # fmt: skip


def sequence_log_ratio(logprob: Tensor, old_logprob: Tensor, weight: Tensor, lengths: Tensor) -> Tensor:
    """GSPO's log-ratio [T]: the mean over those tokens of the row whose weight is > 0."""
    live = (weight > 0).to(logprob.dtype)
    difference = torch.where(live > 0, logprob - old_logprob, 0.0)
    total, count = (torch.segment_reduce(x, "sum", lengths=lengths) for x in (difference, live))
    return (total / count.clamp(min=1.0)).repeat_interleave(lengths, output_size=len(logprob))


def aggregation(mode: Aggregation, lengths: Int64, horizon: int) -> tuple[Float32, int]:
    """Weights [T] of the tokens of rows of `lengths` [R], and these rows' part of the denominator.

    The weighted sum over all rows, divided by the sum of their parts, is the loss of `mode` (verl's names).
    `horizon` is the longest possible response, by which seq-mean-token-sum-norm divides.
    """
    tokens, rows = int(lengths.sum()), len(lengths)
    weight = np.ones(tokens, dtype=np.float32)
    if mode == "token-mean":
        return weight, tokens
    if mode == "seq-mean-token-mean":
        weight /= np.repeat(lengths, lengths)
    elif mode == "seq-mean-token-sum-norm":
        weight /= horizon
    return weight, rows
