"""The policy loss on flat tokens: clipped surrogate, KL to a reference policy, entropy bonus, and metrics.

Shape letters: T tokens (the responses of many rows, concatenated).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kernels.policy_loss import reference
from kernels.policy_loss.reference import DIVERGENCES, Divergence

__all__ = ["Backend", "Divergence", "policy_loss"]

Backend = Literal["auto", "triton", "reference"]


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
    backend: Backend = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """`sum_t weight_t (surrogate_t + kl_coef KL_t - entropy_coef H_t)`, and sums of metrics.

    All tensors are [T] float, and [] are returned; `weight` is 0 on padding, whatever the other tensors hold
    there. The surrogate is `max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` of the ratio r = exp(logprob
    - old_logprob), and for A < 0 at most `-A dual_clip`; with `row_log_ratio`, r = exp(row_log_ratio) with
    the gradient of the token's own log-prob (GSPO). Differentiable in `logprob` and `entropy`.

    Metrics are detached: `policy_loss` (the weighted surrogate), and as sums over tokens of weight > 0
    `clip_fraction`, `dual_clip_fraction`, `approx_kl` (k1, old to new), and where given `reference_kl` and
    `entropy`. `auto` runs Triton (float32, the same bits in every run) on CUDA tensors and torch elsewhere.
    Raises ValueError if shapes differ or a term has a coefficient but no tensor.
    """
    optional = {"ref_logprob": ref_logprob, "entropy": entropy, "row_log_ratio": row_log_ratio}
    _check(logprob, {"old_logprob": old_logprob, "advantage": advantage, "weight": weight} | optional)
    if kl_coef and ref_logprob is None:
        raise ValueError(f"kl_coef {kl_coef} needs ref_logprob: give it or set kl_coef to 0")
    if entropy_coef and entropy is None:
        raise ValueError(f"entropy_coef {entropy_coef} needs entropy: give it or set entropy_coef to 0")
    if kl_estimator not in DIVERGENCES:
        raise ValueError(f"kl_estimator must be one of {', '.join(DIVERGENCES)}, got {kl_estimator!r}")
    if backend == "reference" or (backend == "auto" and not logprob.is_cuda):
        compute = reference.policy_loss
    else:
        from kernels.policy_loss import triton

        compute = triton.policy_loss
    return compute(
        logprob, old_logprob, advantage, weight, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip,
        ref_logprob=ref_logprob, kl_coef=kl_coef, kl_estimator=kl_estimator, entropy=entropy,
        entropy_coef=entropy_coef, row_log_ratio=row_log_ratio,
    )  # fmt: skip


def _check(logprob: Tensor, others: dict[str, Tensor | None]) -> None:
    if logprob.dim() != 1:
        raise ValueError(f"logprob must be [T], got {list(logprob.shape)}: flatten the tokens")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != logprob.shape:
            raise ValueError(f"{name} must be {list(logprob.shape)} as logprob, got {list(tensor.shape)}")
