"""Hashing and grouping of anchor states on the GPU, bit for bit as in `reference`.

Tokens, not segments, are split evenly over the programs, so one long segment fills the GPU as well as many
short ones do. A segment's parts are added up as integers, whose sum no order of arrival can change.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.anchor import reference
from kernels.aot import Variant

_PAIRS, _WARPS = 128, 1  # pairs of tokens at a time: a segment of 500 tokens takes two rounds of one warp
_PROGRAMS = 8192
_SHARE = 1024  # least number of tokens of a program
_BLOCK = 512

_WORD_0, _WORD_1 = (tl.constexpr(value) for value in reference.WORD_KEYS)
_PLACE_0, _PLACE_1 = (tl.constexpr(value) for value in reference.PLACE_FACTORS)
_KEY_0, _KEY_1 = (tl.constexpr(value) for value in reference.PLACE_KEYS)
_LENGTH_0, _LENGTH_1 = (tl.constexpr(value) for value in reference.LENGTH_FACTORS)
_FINAL = tl.constexpr(reference.FINAL_FACTOR)
_OF_TASK, _OF_HIGH, _OF_KEY = (tl.constexpr(value) for value in reference.CODE_FACTORS)


@triton.jit
def _fold(a, b):
    return (a * b) ^ tl.umulhi(a, b)


@triton.jit
def _final(x):
    x = (x ^ (x >> 32)) * _FINAL
    x = (x ^ (x >> 32)) * _FINAL
    return x ^ (x >> 32)


@triton.jit
def _segment_at(offsets, segments, token):
    """The segment that `token` lies in."""
    low = token * 0
    high = low + segments
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(offsets + middle) <= token
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit(do_not_specialize=["share", "segments"])
def sum_tokens(tokens, offsets, sums, share, segments, PAIRS: tl.constexpr):
    """Add the pairs that begin among `share` tokens to `sums` uint64 [segments, 2]."""
    first = tl.load(offsets)
    last = tl.load(offsets + segments)
    begin = first + tl.program_id(0).to(tl.int64) * share
    end = tl.minimum(begin + share, last)
    if begin < end:
        lane = tl.arange(0, PAIRS)
        step_0 = lane.to(tl.uint64) * _PLACE_0 + _KEY_0
        step_1 = lane.to(tl.uint64) * _PLACE_1 + _KEY_1
        segment = _segment_at(offsets, segments, begin)
        while begin < end:
            start = tl.load(offsets + segment)
            stop = tl.load(offsets + segment + 1)
            mine = tl.minimum(stop, end)
            pair = (begin - start + 1) // 2  # one that begins before is the previous program's
            sum_0 = tl.zeros((PAIRS,), tl.uint64)
            sum_1 = tl.zeros((PAIRS,), tl.uint64)
            for p in range(start + 2 * pair, mine, 2 * PAIRS):
                at = p + 2 * lane
                live = at < mine
                low = tl.load(tokens + at, mask=live, other=0)
                high = tl.load(tokens + at + 1, mask=live & (at + 1 < stop), other=0)
                word = low.to(tl.uint32).to(tl.uint64) | (high.to(tl.uint32).to(tl.uint64) << 32)
                place = ((p - start) // 2 + 1).to(tl.uint64)
                sum_0 += tl.where(live, _fold(word ^ _WORD_0, place * _PLACE_0 + step_0), 0)
                sum_1 += tl.where(live, _fold(word ^ _WORD_1, place * _PLACE_1 + step_1), 0)
            tl.atomic_add(sums + 2 * segment, tl.sum(sum_0).to(tl.int64, bitcast=True), sem="relaxed")
            tl.atomic_add(sums + 2 * segment + 1, tl.sum(sum_1).to(tl.int64, bitcast=True), sem="relaxed")
            begin = mine
            segment += 1


@triton.jit(do_not_specialize=["segments"])
def finish(sums, offsets, segments, BLOCK: tl.constexpr):
    """Sums to keys, in place."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = r < segments
    length = tl.load(offsets + r + 1, mask=live, other=0) - tl.load(offsets + r, mask=live, other=0)
    length = length.to(tl.uint64)
    at = sums + 2 * r.to(tl.int64)
    sum_0 = tl.load(at, mask=live, other=0).to(tl.uint64, bitcast=True)
    sum_1 = tl.load(at + 1, mask=live, other=0).to(tl.uint64, bitcast=True)
    tl.store(at, _final(sum_0 + length * _LENGTH_0).to(tl.int64, bitcast=True), mask=live)
    tl.store(at + 1, _final(sum_1 + length * _LENGTH_1).to(tl.int64, bitcast=True), mask=live)


def hash_tokens(
    tokens: Tensor, offsets: Tensor, *,
    pairs: int = _PAIRS, programs: int = _PROGRAMS, share: int = _SHARE, block: int = _BLOCK,
) -> Tensor:  # fmt: skip
    """`reference.hash_tokens` in two launches."""
    segments = len(offsets) - 1
    sums = torch.zeros(segments, 2, dtype=torch.int64, device=tokens.device)
    if segments:
        share = max(-(-len(tokens) // programs), share)
        parts = max(triton.cdiv(len(tokens), share), 1)
        lanes: dict[str, Any] = {"PAIRS": pairs, "num_warps": _WARPS}
        sum_tokens[(parts,)](tokens, offsets, sums, share, segments, **lanes)
        finish[(triton.cdiv(segments, block),)](sums, offsets, segments, **_block(block))
    return sums


def _block(block: int) -> dict[str, Any]:
    return {"BLOCK": block, "num_warps": 4}


@triton.jit(do_not_specialize=["rows"])
def encode(task, keys, code, rows, BLOCK: tl.constexpr):
    """A 64-bit code of every row's task and key."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    of_task = tl.load(task + i, mask=live, other=0).to(tl.uint64, bitcast=True)
    high = tl.load(keys + 2 * i, mask=live, other=0).to(tl.uint64, bitcast=True)
    low = tl.load(keys + 2 * i + 1, mask=live, other=0).to(tl.uint64, bitcast=True)
    value = (high * _OF_HIGH + low) * _OF_KEY + of_task * _OF_TASK
    tl.store(code + i, value.to(tl.int64, bitcast=True), mask=live)


@triton.jit
def _unequal(column, one, other, mask):
    return tl.load(column + one, mask=mask, other=0) != tl.load(column + other, mask=mask, other=0)


@triton.jit(do_not_specialize=["rows"])
def find_starts(task, keys, code, order, starts, clash, rows, BLOCK: tl.constexpr):
    """1 in `starts` if a sorted row differs from the one before; `clash` is set if their codes do not."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    later = live & (i > 0)
    row = tl.load(order + i, mask=live, other=0)
    before = tl.load(order + i - 1, mask=later, other=0)
    differs = _unequal(task, row, before, live)
    differs |= _unequal(keys, 2 * row, 2 * before, live)
    differs |= _unequal(keys, 2 * row + 1, 2 * before + 1, live)
    tl.store(starts + i, (differs | (i == 0)).to(tl.int64), mask=live)
    tl.store(clash + i * 0, 1, mask=later & differs & (_unequal(code, row, before, live) == 0))


@triton.jit(do_not_specialize=["rows"])
def find_leaders(order, starts, run, leader, appears, rows, BLOCK: tl.constexpr):
    """The first row of every run of equal keys, and 1 in `appears` at that row."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    first = live & (tl.load(starts + i, mask=live, other=0) == 1)
    row = tl.load(order + i, mask=first, other=0)
    tl.store(leader + tl.load(run + i, mask=first, other=1) - 1, row, mask=first)
    tl.store(appears + row, 1, mask=first)


@triton.jit(do_not_specialize=["rows"])
def number(order, run, leader, appeared, ids, rows, BLOCK: tl.constexpr):
    """Every row gets the number of its run's leader."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    row = tl.load(order + i, mask=live, other=0)
    first = tl.load(leader + tl.load(run + i, mask=live, other=1) - 1, mask=live, other=0)
    tl.store(ids + row, tl.load(appeared + first, mask=live, other=1) - 1, mask=live)


def group_ids(task: Tensor, keys: Tensor, *, block: int = _BLOCK) -> Tensor:
    """`reference.group_ids` by one stable radix sort of 64-bit codes; waits once for the GPU.

    If two keys share a code (4e-9 of batches of 400,000 rows), three more sorts order whole keys.
    """
    rows, keys = len(task), keys.view(torch.int64)
    if not rows:
        return torch.empty_like(task)
    grid, meta = (triton.cdiv(rows, block),), _block(block)
    code, starts, leader, ids = (torch.empty_like(task) for _ in range(4))
    flags = torch.zeros(rows + 1, dtype=torch.int64, device=task.device)
    appears, clash = flags[:rows], flags[rows:]
    encode[grid](task, keys, code, rows, **meta)
    order = code.argsort(stable=True)
    find_starts[grid](task, keys, code, order, starts, clash, rows, **meta)
    if clash.item():
        order = keys[:, 1].argsort(stable=True)
        for column in (keys[:, 0], task):
            order = order[column[order].argsort(stable=True)]
        find_starts[grid](task, keys, code, order, starts, clash, rows, **meta)
    run = starts.cumsum(0)
    find_leaders[grid](order, starts, run, leader, appears, rows, **meta)
    number[grid](order, run, leader, appears.cumsum(0), ids, rows, **meta)
    return ids


def variants() -> tuple[Variant, ...]:
    """Every kernel as production launches it."""
    columns = ("task", "keys", "code", "order", "starts", "clash", "run", "leader", "appears", "appeared",
               "ids", "offsets", "sums")  # fmt: skip
    signature = {
        **dict.fromkeys(columns, "*i64"),
        **dict.fromkeys(("share", "segments", "rows"), "i32"),
        "tokens": "*i32",
    }
    return (
        Variant("sum_tokens", sum_tokens, signature, {"PAIRS": _PAIRS}, _WARPS, 3),
        *(
            Variant(kernel.fn.__name__, kernel, signature, {"BLOCK": _BLOCK}, 4, 3)
            for kernel in (finish, encode, find_starts, find_leaders, number)
        ),
    )
