"""Triton kernels over rows of logits in memory: their softmax statistics and their gradient."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.logprob.statistics import FLOOR, Rows

_FLOOR = tl.constexpr(FLOOR)
META: dict[str, Any] = {"BLOCK": 4096, "num_warps": 8}


def statistics(logits: Tensor, rows: Rows) -> Tensor:
    """Statistics [4, t] of float32 logits [t, v], of which `rows.columns` are real."""
    tokens = len(logits)
    result = logits.new_empty(4, tokens, dtype=torch.float32)
    if tokens:
        meta: dict[str, Any] = META | {"ENTROPY": rows.entropy}
        row_statistics[(tokens,)](
            logits, rows.scale, rows.target, result, tokens, rows.columns, logits.stride(0), **meta
        )
    return result


def gradients(logits: Tensor, rows: Rows, slopes: Tensor, dtype: torch.dtype) -> Tensor:
    """d_logits [t, v] of float32 logits in `dtype`, 0 for columns that are not real."""
    tokens, end = logits.shape
    out = torch.empty_like(logits, dtype=dtype)
    if tokens:
        meta: dict[str, Any] = META | {"ENTROPY": rows.entropy}
        row_gradients[(tokens, triton.cdiv(end, META["BLOCK"]))](
            logits, rows.scale, rows.target, slopes, out, rows.columns, end, logits.stride(0),
            slopes.stride(0), out.stride(0), **meta,
        )  # fmt: skip
    return out


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
        # Finite for -inf, too, of which 0 * x would be NaN.
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
    """out [T, end]: the gradient of logits by slopes [4, T], 0 from column n_columns on."""
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
