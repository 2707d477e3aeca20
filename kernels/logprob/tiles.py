"""Triton kernels that multiply hidden states with the vocabulary and keep statistics of every tile of logits.

Persistent: each program takes one tile [ROWS tokens, COLUMNS of the vocabulary] after another, in an order
that lets neighbors share operands in the L2 cache. The float32 accumulator never leaves the registers. Its
statistics are taken in two halves of the columns, which keeps the registers within their limit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.logprob.statistics import FLOOR

_FLOOR = tl.constexpr(FLOOR)
_DYNAMIC = ["n_tokens", "n_columns"]  # else every batch size would be compiled again


@triton.jit
def _place(tile, rows_of_tiles, columns_of_tiles, GROUP: tl.constexpr):
    """(row, column) of a tile: GROUP rows of tiles advance through the vocabulary together."""
    per_group = GROUP * columns_of_tiles
    first = tile // per_group * GROUP
    height = tl.minimum(rows_of_tiles - first, GROUP)
    within = tile % per_group
    return first + within % height, within // height


@triton.jit
def _load(
    source, row, column, n_rows, n_columns, stride, R: tl.constexpr, C: tl.constexpr, TMA: tl.constexpr
):
    """[R, C] of `source`, a descriptor or a pointer, at (row, column); 0 beyond its end."""
    if TMA:
        return source.load([row, column])
    else:
        r = row + tl.arange(0, R)
        c = column + tl.arange(0, C)
        inside = (r < n_rows)[:, None] & (c < n_columns)[None, :]
        return tl.load(source + r[:, None].to(tl.int64) * stride + c[None, :], mask=inside, other=0.0)


@triton.jit
def _logits(
    hidden, weight, row, column, n_tokens, n_columns, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """float32 [ROWS, COLUMNS] of hidden @ weight.T."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in tl.range(0, width, DEPTH, num_stages=STAGES):
        h = _load(hidden, row, k, n_tokens, width, width, ROWS, DEPTH, TMA)
        w = _load(weight, column, k, n_columns, width, width, COLUMNS, DEPTH, TMA)
        total = tl.dot(h, w.T, total, input_precision="ieee")
    return total


@triton.jit
def _halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _statistics(logits, scale, column, n_columns, C: tl.constexpr, ENTROPY: tl.constexpr):
    """(peak, total, moment) of logits [R, C] whose first column is `column`; moment is 0 without ENTROPY."""
    real = column + tl.arange(0, C) < n_columns
    x = tl.where(real[None, :], logits * scale[:, None], _FLOOR)
    peak = tl.max(x, 1)
    x = x - peak[:, None]
    # A half that is all padding has its peak at _FLOOR; merging gives it the weight 0.
    weight = tl.exp2(x)
    moment = tl.sum(weight * x, 1) if ENTROPY else tl.zeros_like(peak)
    return peak, tl.sum(weight, 1), moment


@triton.jit
def _merge(peak, total, moment, peak2, total2, moment2):
    top = tl.maximum(peak, peak2)
    below, below2 = peak - top, peak2 - top
    s, s2 = tl.exp2(below), tl.exp2(below2)
    moment = s * (moment + below * total) + s2 * (moment2 + below2 * total2)
    return top, s * total + s2 * total2, moment


@triton.jit(do_not_specialize=_DYNAMIC)
def tile_statistics(
    hidden, weight, scale, parts, n_tokens, n_columns, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr, TMA: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """parts [3, tiles of columns, n_tokens]: peak, total and moment of every tile of logits."""
    rows_of_tiles, columns_of_tiles = tl.cdiv(n_tokens, ROWS), tl.cdiv(n_columns, COLUMNS)
    plane = columns_of_tiles.to(tl.int64) * n_tokens
    for tile in tl.range(
        tl.program_id(0), rows_of_tiles * columns_of_tiles, tl.num_programs(0), flatten=True
    ):
        i, j = _place(tile, rows_of_tiles, columns_of_tiles, GROUP)  # pyright: ignore[reportGeneralTypeIssues]
        logits = _logits(hidden, weight, i * ROWS, j * COLUMNS, n_tokens, n_columns, width,
                         ROWS, COLUMNS, DEPTH, STAGES, TMA)  # fmt: skip
        row = i * ROWS + tl.arange(0, ROWS)
        live = row < n_tokens
        s = tl.load(scale + row, mask=live, other=0.0)
        left, right = _halves(logits, ROWS, COLUMNS)
        column = j * COLUMNS
        peak, total, moment = _statistics(left, s, column, n_columns, COLUMNS // 2, ENTROPY)
        peak2, total2, moment2 = _statistics(
            right, s, column + COLUMNS // 2, n_columns, COLUMNS // 2, ENTROPY
        )
        peak, total, moment = _merge(peak, total, moment, peak2, total2, moment2)
        at = parts + j.to(tl.int64) * n_tokens + row
        tl.store(at, peak, mask=live)
        tl.store(at + plane, total, mask=live)
        if ENTROPY:
            tl.store(at + 2 * plane, moment, mask=live)


@triton.jit(do_not_specialize=["n_tokens", "n_parts"])
def merge_tiles(
    parts, statistics, n_tokens, n_parts, TOKENS: tl.constexpr, PARTS: tl.constexpr, ENTROPY: tl.constexpr
):
    """peak, total, moment of parts [3, n_parts, n_tokens], in order, into statistics [4, n_tokens]."""
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    live = row < n_tokens
    plane = n_parts.to(tl.int64) * n_tokens
    peak = tl.full((TOKENS,), _FLOOR, tl.float32)
    total = tl.zeros((TOKENS,), tl.float32)
    moment = tl.zeros((TOKENS,), tl.float32)
    for first in range(0, n_parts, PARTS):
        part = first + tl.arange(0, PARTS)
        there = (part < n_parts)[:, None] & live[None, :]
        at = parts + part[:, None].to(tl.int64) * n_tokens + row[None, :]
        peaks = tl.load(at, mask=there, other=_FLOOR)
        totals = tl.load(at + plane, mask=there, other=0.0)
        top = tl.max(peaks, 0)
        below = peaks - top[None, :]
        rescale = tl.exp2(below)
        moment2 = tl.zeros_like(moment)
        if ENTROPY:
            moments = tl.load(at + 2 * plane, mask=there, other=0.0)
            moment2 = tl.sum(rescale * (moments + below * totals), 0)
        peak, total, moment = _merge(peak, total, moment, top, tl.sum(rescale * totals, 0), moment2)
    tl.store(statistics + row, peak, mask=live)
    tl.store(statistics + n_tokens + row, total, mask=live)
    tl.store(statistics + 2 * n_tokens + row, moment, mask=live)


@triton.jit(do_not_specialize=["n_columns"])
def label_logits(hidden, weight, scale, target, label, n_columns, width, DEPTH: tl.constexpr):
    """label: the target's scaled logit as a float32 dot product, -inf if another rank has it."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.load(target + row)
    held = (column >= 0) & (column < n_columns)
    total = tl.zeros((DEPTH,), tl.float32)
    for k in range(0, width, DEPTH):
        c = k + tl.arange(0, DEPTH)
        h = tl.load(hidden + row * width + c, mask=c < width, other=0.0)
        w = tl.load(weight + column * width + c, mask=(c < width) & held, other=0.0)
        total += h.to(tl.float32) * w.to(tl.float32)
    tl.store(label + row, tl.where(held, tl.sum(total, 0) * tl.load(scale + row), float("-inf")))


@triton.jit(do_not_specialize=[*_DYNAMIC, "slopes_stride"])
def tile_gradients(
    hidden, weight, scale, target, slopes, out, n_tokens, n_columns, width, slopes_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr, TMA: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """out [n_tokens, n_columns]: gradient of the logits, computed again, by slopes [4, n_tokens]."""
    rows_of_tiles, columns_of_tiles = tl.cdiv(n_tokens, ROWS), tl.cdiv(n_columns, COLUMNS)
    for tile in tl.range(
        tl.program_id(0), rows_of_tiles * columns_of_tiles, tl.num_programs(0), flatten=True
    ):
        i, j = _place(tile, rows_of_tiles, columns_of_tiles, GROUP)
        logits = _logits(hidden, weight, i * ROWS, j * COLUMNS, n_tokens, n_columns, width,
                         ROWS, COLUMNS, DEPTH, STAGES, TMA)  # fmt: skip
        left, right = _halves(logits, ROWS, COLUMNS)
        row, column, half = i * ROWS, j * COLUMNS, COLUMNS // 2
        _gradient(left, scale, target, slopes, out, row, column, n_tokens, n_columns,
                  slopes_stride, out_stride, ROWS, COLUMNS // 2, TMA, ENTROPY)  # fmt: skip
        _gradient(right, scale, target, slopes, out, row, column + half, n_tokens, n_columns,
                  slopes_stride, out_stride, ROWS, COLUMNS // 2, TMA, ENTROPY)  # fmt: skip


@triton.jit
def _gradient(
    logits, scale, target, slopes, out, row, column, n_tokens, n_columns, slopes_stride, out_stride,
    R: tl.constexpr, C: tl.constexpr, TMA: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Write the gradient of logits [R, C] at (row, column)."""
    r = row + tl.arange(0, R)
    c = column + tl.arange(0, C)
    live = r < n_tokens
    s = tl.load(scale + r, mask=live, other=0.0)
    log_sum = tl.load(slopes + r, mask=live, other=0.0)
    one = tl.load(slopes + slopes_stride + r, mask=live, other=0.0)
    constant = tl.load(slopes + 2 * slopes_stride + r, mask=live, other=0.0)
    held = tl.load(target + r, mask=live, other=-1).to(tl.int32)
    x = logits * s[:, None] - log_sum[:, None]
    if ENTROPY:
        slope = tl.load(slopes + 3 * slopes_stride + r, mask=live, other=0.0)
        gradient = tl.exp2(x) * (constant[:, None] + slope[:, None] * x)
    else:
        gradient = tl.exp2(x) * constant[:, None]
    gradient += tl.where(c[None, :] == held[:, None], one[:, None], 0.0)
    if TMA:
        out.store([row, column], gradient.to(out.dtype))
    else:
        at = out + r[:, None].to(tl.int64) * out_stride + c[None, :]
        tl.store(at, gradient.to(out.dtype.element_ty), mask=live[:, None] & (c < n_columns)[None, :])
