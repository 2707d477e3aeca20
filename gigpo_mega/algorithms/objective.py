"""The policy loss on flat tokens (Eq. 9): `cfg.objective` applied to `kernels.policy_loss`.

Losses and metrics are SUMS: the caller divides by a count over all ranks and micro-batches, so that splitting
a batch differently cannot change the gradient. Shape letters: R rows (responses), T tokens (all rows',
concatenated).
"""

from __future__ import annotations

import math

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
    sampled_logprob: Tensor | None = None,
    backend: kernel.LossBackend = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """`sum_t weight_t (rho_t surrogate_t + kl_coef KL_t - entropy_coef H_t)`, and sums of metrics.

    All tensors are [T] float but `lengths`, int64 [R], which the ratio of a sequence needs; `weight` is 0 on
    padding, and made 0 by the `sequence_mask` if `cfg` has bounds for it. With `cfg.rollout_is`, rho are the
    `importance_weights` of `sampled_logprob`, else 1. Metrics are those of `kernels.policy_loss.policy_loss`
    and of these two, over tokens of weight > 0. Raises ValueError if a tensor that `cfg` needs is missing.
    """
    if entropy is not None and not cfg.entropy_coef:
        entropy = entropy.detach()  # it is only measured: times 0 it would have a gradient, of zeros
    row_log_ratio = None
    if cfg.ratio == "sequence":
        if lengths is None:
            raise ValueError("objective.ratio sequence needs the rows' lengths: give them or set it to token")
        row_log_ratio = sequence_log_ratio(logprob.detach(), old_logprob, weight, lengths)
    sums: dict[str, Tensor] = {}
    if cfg.compares_sampling:
        if sampled_logprob is None or lengths is None:
            raise ValueError(
                "objective.rollout_is and rollout_mask need the log-probabilities as sampled and the rows' "
                "lengths: give them or set these fields to null"
            )
        weight, sums = sequence_mask(old_logprob.detach(), sampled_logprob, weight, lengths, cfg)
        if cfg.rollout_is is not None:
            rho, found = importance_weights(old_logprob.detach(), sampled_logprob, weight, lengths, cfg)
            advantage = rho * advantage  # a factor >= 0 of the advantage is one of every surrogate
            sums |= found
    loss, metrics = kernel.policy_loss(
        logprob, old_logprob, advantage, weight,
        surrogate=cfg.surrogate, clip_low=cfg.clip_low, clip_high=cfg.clip_high, dual_clip=cfg.dual_clip,
        ref_logprob=ref_logprob, kl_coef=cfg.kl_coef, kl_estimator=cfg.kl_estimator,
        entropy=entropy, entropy_coef=cfg.entropy_coef, row_log_ratio=row_log_ratio,
        backend=backend,
    )  # fmt: skip
    return loss, metrics | sums


def sequence_log_ratio(logprob: Tensor, old_logprob: Tensor, weight: Tensor, lengths: Tensor) -> Tensor:
    """GSPO's log-ratio [T]: the mean over those tokens of the row whose weight is > 0."""
    live = (weight > 0).to(logprob.dtype)
    difference = torch.where(live > 0, logprob - old_logprob, 0.0)
    total, count = (_row_sums(x, lengths) for x in (difference, live))
    return total / count.clamp(min=1.0)


def sequence_mask(
    old_logprob: Tensor, sampled_logprob: Tensor, weight: Tensor, lengths: Tensor, cfg: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """`weight` [T], but 0 in rows of which the geometric mean of old / sampled is out of `cfg`'s bounds.

    Of tokens whose weight was > 0, `rollout_masked` is the count of those that have lost it; nothing without
    bounds. Source: SkyRL's geometric sequence mask.
    """
    low, high = cfg.rollout_mask_low, cfg.rollout_mask_high
    if low is None and high is None:
        return weight, {}
    ratio = sequence_log_ratio(old_logprob, sampled_logprob, weight, lengths).exp()
    out = (ratio < (0.0 if low is None else low)) | (ratio > (math.inf if high is None else high))
    return torch.where(out, 0.0, weight), {"rollout_masked": (out & (weight > 0)).sum().to(weight.dtype)}


def importance_weights(
    old_logprob: Tensor, sampled_logprob: Tensor, weight: Tensor, lengths: Tensor, cfg: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """`clip(exp(old - sampled), rollout_is_low, rollout_is_high)` [T], and sums of metrics.

    With `cfg.rollout_is` sequence, the differences of those tokens of the row whose `weight` is > 0 are added
    up first: the probabilities are those of the whole response. Over such tokens are `rollout_is_sum` and the
    count `rollout_is_truncated`. Source: truncated importance sampling
    (https://fengyao.notion.site/off-policy-rl), as slime's `tis` and verl's `rollout_is`.
    """
    live = weight > 0
    difference = torch.where(live, old_logprob - sampled_logprob, 0.0)
    if cfg.rollout_is == "sequence":
        difference = _row_sums(difference, lengths)
    ratio = difference.exp()
    low, high = cfg.rollout_is_low, cfg.rollout_is_high
    rho, truncated = ratio.clamp(low, high), (ratio < low) | (ratio > high)
    return rho, {
        "rollout_is_sum": torch.where(live, rho, 0.0).sum(),
        "rollout_is_truncated": (live & truncated).sum().to(rho.dtype),
    }


def _row_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum of each row's tokens, at every token of the row, [T]."""
    total = torch.segment_reduce(values, "sum", lengths=lengths)
    return total.repeat_interleave(lengths, output_size=len(values))


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
