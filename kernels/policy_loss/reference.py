"""The policy loss in plain torch, differentiable by autograd: what the Triton kernel must agree with."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Divergence = Literal["k1", "abs", "k2", "k3"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
Surrogate = Literal["ppo", "cispo"]
SURROGATES: tuple[Surrogate, ...] = get_args(Surrogate)

# If exp() overflows, the zero gradient of a clip becomes 0 * inf = NaN. No clip is anywhere near e^20.
MAX_LOG_RATIO = 20.0
MAX_ROW_LOG_RATIO = 10.0  # of a whole row's mean, as verl's
MAX_K3 = 10.0


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    ref_logprob: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: Divergence = "k3",
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    row_log_ratio: Tensor | None = None,
    surrogate: Surrogate = "ppo",
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `kernels.policy_loss.policy_loss` documents, in the precision of its arguments."""
    live = (weight > 0).to(logprob.dtype)
    log_ratio = torch.where(live > 0, logprob - old_logprob, 0.0)
    ratio = log_ratio
    if row_log_ratio is not None:
        ratio = (logprob - logprob.detach() + row_log_ratio).clamp(max=MAX_ROW_LOG_RATIO)
    if surrogate == "cispo":
        shown = torch.where(live > 0, logprob, 0.0)
        losses, clipped = weighted_logprob(ratio, shown, advantage, clip_low, clip_high)
        bounded = torch.zeros_like(clipped)
    else:
        losses, clipped, bounded = clipped_surrogate(ratio, advantage, clip_low, clip_high, dual_clip)
    loss = _total(losses, weight)
    metrics = {
        "surrogate_sum": loss.detach(),
        "clipped_tokens": _total(clipped, live),
        "dual_clipped_tokens": _total(bounded, live),
        "approx_kl_sum": -log_ratio.detach().sum(),
    }
    if ref_logprob is not None:
        divergence = kl_divergence(logprob, ref_logprob, kl_estimator)
        loss = loss + kl_coef * _total(divergence, weight)
        metrics["reference_kl_sum"] = _total(divergence.detach(), live)
    if entropy is not None:
        loss = loss - entropy_coef * _total(entropy, weight)
        metrics["entropy_sum"] = _total(entropy.detach(), live)
    return loss, metrics


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))`, and for A < 0 at most `-A dual_clip`.

    Returns the loss [T], and as bool [T] whether the clip and whether the dual clip decided it (verl's
    `compute_policy_loss`). Log-ratios beyond +-20 are clamped.
    """
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    plain = -advantage * ratio
    clip = -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(plain, clip)
    bounded = torch.zeros_like(plain, dtype=torch.bool)
    if dual_clip is not None:
        bound = -advantage * dual_clip
        bounded = (advantage < 0) & (loss > bound)
        loss = torch.where(bounded, bound, loss)
    return loss, clip > plain, bounded


def weighted_logprob(
    log_ratio: Tensor, logprob: Tensor, advantage: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """CISPO's loss `-A clip(r, 1 - clip_low, 1 + clip_high) logprob` [T], in which the ratio has no gradient.

    Returns also, as bool [T], whether the ratio was clipped. Source: MiniMax-M1 (arXiv 2506.13585), Eq. 4, 5.
    """
    ratio = log_ratio.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    low, high = 1.0 - clip_low, 1.0 + clip_high
    return -advantage * ratio.clamp(low, high) * logprob, (ratio < low) | (ratio > high)


def kl_divergence(logprob: Tensor, ref_logprob: Tensor, kind: Divergence) -> Tensor:
    """Per-token estimate [T] of KL(policy || reference) from sampled tokens.

    With d = ref - logprob: k1 = -d, `abs` its magnitude, k2 = d^2 / 2, k3 = exp(d) - d - 1, which is at most
    10 (Schulman, http://joschu.net/blog/kl-approx.html; verl calls them kl, abs, mse and low_var_kl).
    """
    difference = ref_logprob - logprob
    if kind == "k1":
        return -difference
    if kind == "abs":
        return difference.abs()
    if kind == "k2":
        return 0.5 * difference.square()
    difference = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)  # k3 exceeds 10 beyond: no value changes
    return (difference.exp() - difference - 1.0).clamp(max=MAX_K3)


def _total(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum; a weight of 0 hides anything, NaN included, from value and gradient."""
    return (torch.where(weight > 0, values, 0.0) * weight).sum()
