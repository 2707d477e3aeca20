"""The policy loss on flat tokens (Eq. 9): clipped surrogate, KL to the reference policy, entropy bonus.

Pure torch. Losses and metrics are SUMS: the caller divides by a count over all ranks and micro-batches, so
that splitting a batch differently can't change the gradient. Shape letters: T tokens (the responses of many
rows, concatenated).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gigpo_mega.config import ObjectiveConfig

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
Divergence = Literal["kl", "abs", "mse", "low_var_kl"]

# Where exp() overflows, the zero gradient of a clip becomes 0 * inf = NaN. No clip is anywhere near e^20.
_MAX_LOG_RATIO = 20.0


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    cfg: ObjectiveConfig,
    ref_logprob: Tensor | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`sum_t weight_t (surrogate_t + kl_coef k3_t - entropy_coef H_t)`, and sums of metrics.

    All tensors are [T] float; `weight` is 0 on padding, whatever the other tensors hold there. Metrics are
    detached: `policy_loss` (weighted), and as sums over tokens of weight > 0 `clip_fraction`,
    `dual_clip_fraction`, `approx_kl` (k1, old to new), and where given `reference_kl` (k3) and `entropy`.
    Raises ValueError if `cfg` weighs a term whose tensor is missing.
    """
    if cfg.kl_coef and ref_logprob is None:
        raise ValueError(f"objective.kl_coef {cfg.kl_coef} needs a reference policy: give one or set it to 0")
    if cfg.entropy_coef and entropy is None:
        raise ValueError(f"objective.entropy_coef {cfg.entropy_coef} needs entropy: give it or set it to 0")
    live = (weight > 0).to(logprob.dtype)
    log_ratio = torch.where(live > 0, logprob - old_logprob, 0.0)
    surrogate, clipped, bounded = clipped_surrogate(
        log_ratio, advantage, cfg.clip_low, cfg.clip_high, cfg.dual_clip
    )
    loss = _total(surrogate, weight)
    metrics = {
        "policy_loss": loss.detach(),
        "clip_fraction": _total(clipped, live),
        "dual_clip_fraction": _total(bounded, live),
        "approx_kl": -log_ratio.detach().sum(),
    }
    if ref_logprob is not None:
        k3 = kl_divergence(logprob, ref_logprob, "low_var_kl")
        loss = loss + cfg.kl_coef * _total(k3, weight)
        metrics["reference_kl"] = _total(k3.detach(), live)
    if entropy is not None:
        loss = loss - cfg.entropy_coef * _total(entropy, weight)
        metrics["entropy"] = _total(entropy.detach(), live)
    return loss, metrics


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))`, and for A < 0 at most `-A dual_clip`.

    Returns the loss [T], and as bool [T] where the clip decided and where the dual clip did (verl's
    `compute_policy_loss`). Log-ratios beyond +-20 are clamped.
    """
    ratio = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    plain = -advantage * ratio
    clip = -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(plain, clip)
    bounded = torch.zeros_like(plain, dtype=torch.bool)
    if dual_clip is not None:
        bound = -advantage * dual_clip
        bounded = (advantage < 0) & (loss > bound)
        loss = torch.where(advantage < 0, torch.minimum(loss, bound), loss)
    return loss, clip > plain, bounded


def sequence_log_ratio(logprob: Tensor, old_logprob: Tensor, mask: Tensor, row: Tensor, rows: int) -> Tensor:
    """GSPO's log-ratio [T]: the mean over the token's row, with the gradient of the token's own log-prob.

    `row` int64 [T] is the row 0..`rows`-1 of a token, `mask` [T] 1 on response tokens. At most 10, as verl's.
    """
    difference = torch.where(mask > 0, logprob - old_logprob, 0.0).detach()
    zero = difference.new_zeros(rows)
    count = zero.index_add(0, row, mask.to(zero.dtype)).clamp(min=1.0)
    mean = zero.index_add(0, row, difference) / count
    return (logprob - logprob.detach() + mean[row]).clamp(max=10.0)


def kl_divergence(logprob: Tensor, ref_logprob: Tensor, kind: Divergence) -> Tensor:
    """Per-token estimate [T] of KL(policy || reference) from sampled tokens.

    `kl` is k1, `abs` its magnitude, `mse` k2, `low_var_kl` k3 = exp(d) - d - 1 with d = ref - logprob,
    clamped to +-10 (Schulman, http://joschu.net/blog/kl-approx.html; the names are verl's).
    """
    difference = ref_logprob - logprob
    if kind == "kl":
        return -difference
    if kind == "abs":
        return difference.abs()
    if kind == "mse":
        return 0.5 * difference.square()
    difference = difference.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)  # k3 exceeds 10 beyond: no value changes
    return (difference.exp() - difference - 1.0).clamp(-10.0, 10.0)


def aggregation(
    mode: Aggregation, mask: Tensor, row: Tensor, rows: int, horizon: int
) -> tuple[Tensor, Tensor]:
    """Weights [T] and denominator that make `sum(weight * loss) / denominator` the loss of `mode`.

    `mask` [T] is 1 on response tokens, `row` int64 [T] the row 0..`rows`-1 of a token, `horizon` the padded
    response length, by which seq-mean-token-sum-norm divides. The names are verl's.
    """
    weight = mask.to(torch.float32)
    if mode == "token-mean":
        return weight, weight.sum()
    if mode == "seq-mean-token-mean":
        count = weight.new_zeros(rows).index_add(0, row, weight)
        weight = weight / count.clamp(min=1.0)[row]
    return weight, weight.new_tensor(horizon if mode == "seq-mean-token-sum-norm" else rows)


def _total(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum; a weight of 0 hides anything, NaN included, from value and gradient."""
    return (torch.where(weight > 0, values, 0.0) * weight).sum()
