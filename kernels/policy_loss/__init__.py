"""The policy loss on flat tokens: clipped surrogate, KL to a reference policy, entropy bonus, and metrics.

Shape letters: T tokens (the responses of many rows, concatenated).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kernels.policy_loss import reference
from kernels.policy_loss.reference import DIVERGENCES, SURROGATES, Divergence, Surrogate

__all__ = ["Divergence", "LossBackend", "Surrogate", "policy_loss"]

LossBackend = Literal["auto", "triton", "reference"]


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
    backend: LossBackend = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """`sum_t weight_t (surrogate_t + kl_coef KL_t - entropy_coef H_t)`, and sums of metrics.

    All tensors are [T] float, and [] are returned; `weight` is 0 on padding, whatever the other tensors hold
    there. The surrogate is `max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` of the ratio r = exp(logprob
    - old_logprob), and for A < 0 at most `-A dual_clip`; with `row_log_ratio`, r = exp(row_log_ratio) with
    the gradient of the token's own log-prob (GSPO). With `surrogate` "cispo" it is `-A c logprob`, where the
    clipped ratio c has no gradient (MiniMax-M1, arXiv 2506.13585, Eq. 4 and 5) and `dual_clip` plays no part.
    Differentiable in `logprob` and `entropy`.

    Metrics are detached sums: `surrogate_sum` is weighted; over the tokens of weight > 0 are the counts
    `clipped_tokens` (with "cispo", of ratios out of bounds) and `dual_clipped_tokens`, `approx_kl_sum` (k1,
    old to new), and if their tensors are given `reference_kl_sum` and `entropy_sum`. `auto` runs Triton
    (float32, the same bits in every run) on CUDA tensors and torch on others. Raises ValueError if shapes
    differ or a term has a coefficient but no tensor.
    """
    optional = {"ref_logprob": ref_logprob, "entropy": entropy, "row_log_ratio": row_log_ratio}
    _check(logprob, {"old_logprob": old_logprob, "advantage": advantage, "weight": weight} | optional)
    if kl_coef and ref_logprob is None:
        raise ValueError(f"kl_coef {kl_coef} needs ref_logprob: give it or set kl_coef to 0")
    if entropy_coef and entropy is None:
        raise ValueError(f"entropy_coef {entropy_coef} needs entropy: give it or set entropy_coef to 0")
    if kl_estimator not in DIVERGENCES:
        raise ValueError(f"kl_estimator must be one of {', '.join(DIVERGENCES)}, got {kl_estimator!r}")
    if surrogate not in SURROGATES:
        raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got {surrogate!r}")
    if backend == "reference" or (backend == "auto" and not logprob.is_cuda):
        compute = reference.policy_loss
    else:
        from kernels.policy_loss import triton

        compute = triton.policy_loss
    return compute(
        logprob, old_logprob, advantage, weight, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip,
        ref_logprob=ref_logprob, kl_coef=kl_coef, kl_estimator=kl_estimator, entropy=entropy,
        entropy_coef=entropy_coef, row_log_ratio=row_log_ratio, surrogate=surrogate,
    )  # fmt: skip


def _check(logprob: Tensor, others: dict[str, Tensor | None]) -> None:
    if logprob.dim() != 1:
        raise ValueError(f"logprob must be [T], got {list(logprob.shape)}: flatten the tokens")
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != logprob.shape:
            raise ValueError(f"{name} must be {list(logprob.shape)} as logprob, got {list(tensor.shape)}")
