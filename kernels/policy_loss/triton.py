"""The policy loss in one pass over the tokens: loss, metrics and both gradients.

Each program writes the sums of its own tokens and torch adds those in a fixed order, in float64: no atomics,
the same bits on every run. Coefficients are arguments at run time: a schedule recompiles nothing.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.aot import Variant
from kernels.policy_loss.reference import (
    DIVERGENCES,
    MAX_K3,
    MAX_LOG_RATIO,
    MAX_ROW_LOG_RATIO,
    Divergence,
    Surrogate,
)

_BLOCK, _WARPS = 512, 4
SUMS: tuple[str, ...] = (
    "loss", "surrogate_sum", "clipped_tokens", "dual_clipped_tokens", "approx_kl_sum", "reference_kl_sum",
    "entropy_sum",
)  # fmt: skip
_MAX_LOG_RATIO, _MAX_K3 = tl.constexpr(MAX_LOG_RATIO), tl.constexpr(MAX_K3)
_K1, _ABS, _K2 = (tl.constexpr(DIVERGENCES.index(name)) for name in ("k1", "abs", "k2"))


@triton.jit
def _clamp(x, low, high):
    """Unlike tl.clamp, NaN stays NaN."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _inside(x, low, high):
    """1 if a clamp lets the gradient through, else 0."""
    return tl.where((x < low) | (x > high), 0.0, 1.0)


@triton.jit
def _divergence(d, kind):
    """KL estimate and its slope by log-prob, of d = reference - policy."""
    c = _clamp(d, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    k3 = tl.exp(c) - c - 1.0
    value = tl.where(k3 > _MAX_K3, _MAX_K3, k3)
    slope = (1.0 - tl.exp(c)) * tl.where(k3 > _MAX_K3, 0.0, 1.0) * _inside(d, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    if kind == _K1:
        value = -d
        slope = tl.full(d.shape, 1.0, tl.float32)
    elif kind == _ABS:
        value = tl.abs(d)
        slope = tl.where(d > 0, -1.0, tl.where(d < 0, 1.0, 0.0))
    elif kind == _K2:
        value = 0.5 * d * d
        slope = -d
    return value, slope


@triton.jit(do_not_specialize=["tokens", "kind", "cispo"])
def policy_loss_kernel(
    logprob, old_logprob, advantage, weight, ref_logprob, entropy, row_log_ratio,
    d_logprob, d_entropy, partial,
    tokens, kind, cispo, low, high, dual_clip, kl_coef, entropy_coef, max_log_ratio,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK tokens, and their sums into one row of `partial`; optional tensors may be None."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = tl.load(weight + i, mask=i < tokens, other=0.0)
    live = w > 0
    one = tl.where(live, 1.0, 0.0)
    w = tl.where(live, w, 0.0)
    # A masked load leaves padding unread: it may hold NaN.
    logp = tl.load(logprob + i, mask=live, other=0.0)
    old = tl.load(old_logprob + i, mask=live, other=0.0)
    adv = tl.load(advantage + i, mask=live, other=0.0)
    log_ratio = logp - old
    if row_log_ratio is not None:
        log_ratio = tl.load(row_log_ratio + i, mask=live, other=0.0)
    ratio = tl.exp(_clamp(log_ratio, -_MAX_LOG_RATIO, max_log_ratio))
    plain = -adv * ratio
    clip = -adv * _clamp(ratio, low, high)
    clipped = clip > plain
    surrogate = tl.where(clipped, clip, plain)
    bounded = (adv < 0) & (surrogate > -adv * dual_clip)
    slope = tl.where(clipped | bounded, 0.0, plain) * _inside(log_ratio, -_MAX_LOG_RATIO, max_log_ratio)
    surrogate = tl.where(bounded, -adv * dual_clip, surrogate)
    if cispo != 0:
        surrogate = clip * logp
        slope = clip
        clipped = (ratio < low) | (ratio > high)
    policy = tl.sum(surrogate * w)
    loss, kl_total, entropy_total = policy, 0.0, 0.0
    if ref_logprob is not None:
        ref = tl.load(ref_logprob + i, mask=live, other=0.0)
        kl, kl_slope = _divergence(ref - logp, kind)
        loss += kl_coef * tl.sum(kl * w)
        slope += kl_coef * kl_slope
        kl_total = tl.sum(kl * one)
    if entropy is not None:
        h = tl.load(entropy + i, mask=live, other=0.0)
        loss -= entropy_coef * tl.sum(h * w)
        entropy_total = tl.sum(h)
        tl.store(d_entropy + i, -entropy_coef * w, mask=i < tokens)
    tl.store(d_logprob + i, slope * w, mask=i < tokens)
    row = partial + tl.program_id(0) * COLUMNS
    tl.store(row, loss)
    tl.store(row + 1, policy)
    tl.store(row + 2, tl.sum(tl.where(clipped, one, 0.0)))
    tl.store(row + 3, tl.sum(tl.where(bounded, one, 0.0)))
    tl.store(row + 4, tl.sum(old - logp))
    tl.store(row + 5, kl_total)
    tl.store(row + 6, entropy_total)


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
    block: int = _BLOCK,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `kernels.policy_loss.policy_loss` documents, in float32; a program takes `block` tokens."""
    cispo = surrogate == "cispo"
    bound = torch.finfo(torch.float32).max if cispo or dual_clip is None else dual_clip
    limit = MAX_LOG_RATIO if row_log_ratio is None else MAX_ROW_LOG_RATIO
    coefficients = (1.0 - clip_low, 1.0 + clip_high, bound, kl_coef, entropy_coef, limit)
    others = (old_logprob, advantage, weight, ref_logprob, row_log_ratio)
    scalars = (DIVERGENCES.index(kl_estimator), int(cispo), *map(float, coefficients))
    sums = _PolicyLoss.apply(logprob, entropy, others, scalars, block)
    assert isinstance(sums, Tensor)
    metrics: dict[str, Tensor] = dict(zip(SUMS[1:], sums.detach()[1:], strict=True))
    if ref_logprob is None:
        del metrics["reference_kl_sum"]
    if entropy is None:
        del metrics["entropy_sum"]
    return sums[0], metrics


class _PolicyLoss(torch.autograd.Function):
    """The float32 sums of `SUMS`; the first has gradients, which are computed with it."""

    @staticmethod
    def forward(
        ctx: Any,
        logprob: Tensor,
        entropy: Tensor | None,
        others: tuple[Tensor | None, ...],
        scalars: tuple[Any, ...],
        block: int,
    ) -> Tensor:
        old, advantage, weight, ref, row = map(_column, others)
        columns = (_column(logprob), old, advantage, weight, ref, _column(entropy), row)
        d_logprob = torch.empty_like(logprob, dtype=torch.float32)
        d_entropy = None if entropy is None else torch.empty_like(d_logprob)
        tokens = logprob.numel()
        programs = -(-tokens // block)
        partial = torch.empty(programs, len(SUMS), device=logprob.device)
        meta: dict[str, Any] = {"BLOCK": block, "COLUMNS": len(SUMS), "num_warps": _WARPS, "num_stages": 1}
        policy_loss_kernel[(programs,)](*columns, d_logprob, d_entropy, partial, tokens, *scalars, **meta)
        ctx.save_for_backward(d_logprob, d_entropy)
        ctx.types = logprob.dtype, None if entropy is None else entropy.dtype
        return partial.sum(0, dtype=torch.float64).float()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        d_loss = grads[0][0]
        found = zip(ctx.saved_tensors, ctx.types, strict=True)
        return (*(None if d is None else (d_loss * d).to(dtype) for d, dtype in found), None, None, None)


def _column(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().float().contiguous()


def variants() -> tuple[Variant, ...]:
    """Every kernel as production launches it.

    The learner always has entropies; a reference policy and sequence ratios depend on its config.
    """
    tensors = ("logprob", "old_logprob", "advantage", "weight", "ref_logprob", "entropy", "row_log_ratio",
               "d_logprob", "d_entropy", "partial")  # fmt: skip
    scalars = ("low", "high", "dual_clip", "kl_coef", "entropy_coef", "max_log_ratio")
    signature = dict.fromkeys(tensors, "*fp32") | dict.fromkeys(scalars, "fp32")
    signature |= {"tokens": "i32", "kind": "i32", "cispo": "i32"}
    found: list[Variant] = []
    for ref, row in product((False, True), repeat=2):
        name = "entropy" + " ref" * ref + " row" * row
        constants: dict[str, Any] = {} if ref else {"ref_logprob": None}
        constants |= {} if row else {"row_log_ratio": None}
        constants |= {"BLOCK": _BLOCK, "COLUMNS": len(SUMS)}
        found.append(Variant(name, policy_loss_kernel, signature, constants, _WARPS, stages=1))
    return tuple(found)
