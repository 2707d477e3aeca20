"""Triton kernels over rows of logits that exist: their softmax statistics and their gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.logprob.statistics import FLOOR

_FLOOR = tl.constexpr(FLOOR)


@triton.jit(do_not_specialize=["n_tokens", "n_columns"])
def row_statistics(
    logits, scale, target, statistics, n_tokens, n_columns, stride, BLOCK: tl.constexpr, ENTROPY: tl.constexpr
):
    """statistics [4, n_tokens] of logits [n_tokens, n_columns]; one program a row, one column a lane."""
    row = tl.program_id(0).to(tl.int64)
    s = tl.load(scale + row)
    peak = _FLOOR
    total = tl.zeros((BLOCK,), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, n_columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + column, mask=column < n_columns, other=_FLOOR).to(tl.float32)
        # A caller may have masked logits with -inf, of which 0 * x would be NaN.
        x = tl.maximum(x * s, _FLOOR)
        top = tl.maximum(peak, tl.max(x, 0))
        below = peak - top
        rescale = tl.exp2(below)
        x = x - top
        weight = tl.where(column < n_columns, tl.exp2(x), 0.0)
        if ENTROPY:
            moment = rescale * (moment + below * total) + weight * x
        total = rescale * total + weight
        peak = top
    column = tl.load(target + row)
    held = (column >= 0) & (column < n_columns)
    label = tl.load(logits + row * stride + column, mask=held, other=0.0).to(tl.float32) * s
    tl.store(statistics + row, peak)
    tl.store(statistics + n_tokens + row, tl.sum(total, 0))
    tl.store(statistics + 2 * n_tokens + row, tl.sum(moment, 0))
    tl.store(statistics + 3 * n_tokens + row, tl.where(held, label, float("-inf")))


@triton.jit(do_not_specialize=["n_columns", "end", "slopes_stride"])
def row_gradients(
    logits, scale, target, slopes, out, n_columns, end, stride, slopes_stride, out_stride,
    BLOCK: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """out [T, end], which may be logits: their gradient by slopes [4, T], 0 from column n_columns on."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < n_columns
    x = tl.load(logits + row * stride + column, mask=real, other=0.0).to(tl.float32)
    x = tl.maximum(x * tl.load(scale + row), _FLOOR) - tl.load(slopes + row)
    gradient = tl.load(slopes + 2 * slopes_stride + row)
    if ENTROPY:
        gradient += tl.load(slopes + 3 * slopes_stride + row) * x
    gradient = gradient * tl.exp2(x)
    gradient += tl.where(column == tl.load(target + row), tl.load(slopes + slopes_stride + row), 0.0)
    gradient = tl.where(real, gradient, 0.0)
    tl.store(out + row * out_stride + column, gradient.to(out.dtype.element_ty), mask=column < end)
