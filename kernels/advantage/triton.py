"""Advantages on the GPU, bit for bit as in `reference`: the same sums in fixed point, by integer atomics.

Both levels go through the same launches: level e of row i is element e * N + i. A group's statistics live at
its number, which is below N on either level, so nothing has to be counted on the host first.
"""

# To the checker, a Triton function that another one calls never returns.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.advantage.columns import Columns, Levels, Rule, Rules
from kernels.advantage.reference import BITS, EXPONENT_BIAS, MANTISSA, MAX_EXPONENT
from kernels.aot import Variant

TRAJECTORY_BITS, STEP_BITS = 22, 20  # of what is sorted by; 21 are left for the group

_BITS, _BIAS = tl.constexpr(BITS), tl.constexpr(EXPONENT_BIAS)
_MANTISSA, _MAX_EXPONENT = tl.constexpr(MANTISSA), tl.constexpr(MAX_EXPONENT)
_STEP_MASK = tl.constexpr((1 << STEP_BITS) - 1)
_GROUP_SHIFT = tl.constexpr(TRAJECTORY_BITS + STEP_BITS)


@dataclass(frozen=True, slots=True)
class Launch:
    """Meta-parameters; production takes the defaults."""

    block: int = 256  # rows of a program
    trajectories: int = 32  # of a program: each is walked by one lane
    filled: int = 8  # rows whose tokens a program fills
    tokens: int = 256  # filled at a time


PRODUCTION = Launch()


@triton.jit(do_not_specialize=["rows"])
def find_boundaries(key, starts, rows, BLOCK: tl.constexpr):
    """Where sorted rows begin a trajectory (1) and a group (2^32 on top)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    now = tl.load(key + i, mask=live, other=0)
    before = tl.load(key + i - 1, mask=live & (i > 0), other=-1)
    group = ((now >> _GROUP_SHIFT) != (before >> _GROUP_SHIFT)).to(tl.int64)
    tl.store(starts + i, (group << 32) + ((now & _STEP_MASK) == 0).to(tl.int64), mask=live)


@triton.jit(do_not_specialize=["rows"])
def find_begins(key, numbered, begin, rows, BLOCK: tl.constexpr):
    """Where every trajectory begins among the sorted rows."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    first = live & ((tl.load(key + i, mask=live, other=1) & _STEP_MASK) == 0)
    trajectory = (tl.load(numbered + i, mask=first, other=1) & 0xFFFFFFFF) - 1
    tl.store(begin + trajectory, i.to(tl.int64), mask=first)


@triton.jit(do_not_specialize=["rows"])
def walk(
    reward, penalty, order, numbered, begin, step_group, values, segment, rows,
    GAMMA: tl.constexpr, EARLY: tl.constexpr, SINGLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Score forwards, returns backwards, along BLOCK trajectories; and the segment on either level."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(begin + t, mask=t < rows, other=rows)
    length = tl.load(begin + t + 1, mask=t < rows, other=rows) - first
    longest = tl.max(length)
    score = tl.zeros((BLOCK,), tl.float64)
    for k in range(longest):
        live = k < length
        row = tl.load(order + first + k, mask=live, other=0)
        score += _reward(reward, penalty, row, live, EARLY)
    group = (tl.load(numbered + first, mask=length > 0, other=0) >> 32) - 1
    following = tl.zeros((BLOCK,), tl.float64)
    for k in range(longest):
        live = k < length
        row = tl.load(order + first + length - 1 - k, mask=live, other=0)
        following = _reward(reward, penalty, row, live, EARLY) + following * GAMMA
        late = 0.0 if EARLY else tl.load(penalty + row, mask=live, other=0.0)
        tl.store(values + row, _rounded(score - late, SINGLE), mask=live)
        tl.store(segment + row, group, mask=live)
        if step_group is not None:
            tl.store(values + rows + row, _rounded(following - late, SINGLE), mask=live)
            tl.store(segment + rows + row, rows + tl.load(step_group + row, mask=live, other=0), mask=live)


@triton.jit
def _reward(reward, penalty, row, live, EARLY: tl.constexpr):
    r = tl.load(reward + row, mask=live, other=0.0)
    return r - tl.load(penalty + row, mask=live, other=0.0) if EARLY else r


@triton.jit
def _rounded(x, SINGLE: tl.constexpr):
    return x.to(tl.float32).to(tl.float64) if SINGLE else x


@triton.jit
def _sortable(x):
    """float64 to integers of the same order, and back."""
    return x ^ ((x >> 63) & 0x7FFFFFFFFFFFFFFF)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + _BIAS) << _MANTISSA).to(tl.float64, bitcast=True)


@triton.jit
def _exponent(largest, count):
    """Of the scale of a fixed-point sum of `count` values up to `largest`."""
    power = ((largest * count).to(tl.int64, bitcast=True) >> _MANTISSA) - _BIAS + 1
    return tl.minimum(tl.maximum(-power + _BITS, -_MAX_EXPONENT), _MAX_EXPONENT)


@triton.jit
def _members(step, values, i, rows, levels, BY_ROW: tl.constexpr):
    """Whether element i enters the statistics, and its value."""
    member = i < levels * rows
    if not BY_ROW:
        member &= (i >= rows) | (tl.load(step + i, mask=i < rows, other=1) == 0)
    return member, tl.load(values + i, mask=member, other=0.0)


@triton.jit
def _extremes(bounds, segment, slots, mask):
    low = _sortable(~tl.load(bounds + segment, mask=mask, other=-1)).to(tl.float64, bitcast=True)
    high = _sortable(tl.load(bounds + slots + segment, mask=mask, other=0)).to(tl.float64, bitcast=True)
    return low, high


@triton.jit
def _mean(bounds, sums, segment, slots, mask):
    """Mean, the largest squared distance to it, and the number of members, of each segment."""
    low, high = _extremes(bounds, segment, slots, mask)
    count = tl.load(sums + segment, mask=mask, other=1).to(tl.float64)
    total = tl.load(sums + slots + segment, mask=mask, other=0).to(tl.float64)
    mean = low + total * _power_of_two(-_exponent(high - low, count)) / count
    above, below = high - mean, mean - low
    return mean, tl.maximum(above * above, below * below), count


@triton.jit(do_not_specialize=["rows", "levels"])
def find_extremes(
    step, values, segment, bounds, sums, rows, levels, BY_ROW: tl.constexpr, BLOCK: tl.constexpr
):
    """Smallest (as the largest complement), largest, and number of members of each segment."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    member, value = _members(step, values, i, rows, levels, BY_ROW)
    s = tl.load(segment + i, mask=member, other=0)
    bits = _sortable((value + 0.0).to(tl.int64, bitcast=True))
    tl.atomic_max(bounds + s, ~bits, mask=member, sem="relaxed")
    tl.atomic_max(bounds + levels * rows + s, bits, mask=member, sem="relaxed")
    tl.atomic_add(sums + s, 1, mask=member, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "levels"])
def sum_values(
    step, values, segment, bounds, sums, rows, levels, BY_ROW: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums of the differences to the smallest member, in fixed point."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slots = levels * rows
    member, value = _members(step, values, i, rows, levels, BY_ROW)
    s = tl.load(segment + i, mask=member, other=0)
    low, high = _extremes(bounds, s, slots, member)
    count = tl.load(sums + s, mask=member, other=1).to(tl.float64)
    scaled = (value - low) * _power_of_two(_exponent(high - low, count))
    tl.atomic_add(sums + slots + s, (scaled + 0.5).to(tl.int64), mask=member, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "levels"])
def sum_squares(
    step, values, segment, bounds, sums, rows, levels, BY_ROW: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums of the squared differences to the mean, in fixed point."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slots = levels * rows
    member, value = _members(step, values, i, rows, levels, BY_ROW)
    s = tl.load(segment + i, mask=member, other=0)
    mean, farthest, count = _mean(bounds, sums, s, slots, member)
    scaled = (value - mean) * (value - mean) * _power_of_two(_exponent(farthest, count))
    tl.atomic_add(sums + 2 * slots + s, (scaled + 0.5).to(tl.int64), mask=member, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "levels"])
def compare(
    values, segment, bounds, sums, episode, relative, total, rows, levels,
    LEVEL: tl.constexpr, OMEGA: tl.constexpr, SCALE: tl.constexpr, EPSILON: tl.constexpr, DDOF: tl.constexpr,
    LEAVE_ONE_OUT: tl.constexpr, KEEP_LONE: tl.constexpr, SINGLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`reference.relative` on one level; level 0 leaves its float64 in `episode`, level 1 adds to that."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    slots = levels * rows
    s = tl.load(segment + LEVEL * rows + i, mask=live, other=0)
    mean, farthest, count = _mean(bounds, sums, s, slots, live)
    squares = tl.load(sums + 2 * slots + s, mask=live, other=0).to(tl.float64)
    variance = squares * _power_of_two(-_exponent(farthest, count)) / tl.maximum(count - DDOF, 1.0)
    std = _rounded(tl.sqrt(variance), SINGLE)
    mean = _rounded(mean, SINGLE)
    if KEEP_LONE:
        mean = tl.where(count == 1.0, 0.0, mean)
        std = tl.where(count == 1.0, 1.0, std)
    result = tl.load(values + LEVEL * rows + i, mask=live, other=0.0) - mean
    if LEAVE_ONE_OUT:
        result *= count / tl.maximum(count - 1.0, 1.0)
    if SCALE:
        result /= std + EPSILON
    tl.store(relative + i, result.to(tl.float32), mask=live)
    if LEVEL == 0:
        tl.store(episode + i, result, mask=live)
    else:
        result = tl.load(episode + i, mask=live, other=0.0) + result * OMEGA
    tl.store(total + i, result.to(tl.float32), mask=live)


@triton.jit(do_not_specialize=["rows"])
def spread(total, offsets, token, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The total of a row for each of its tokens, ROWS rows a program."""
    first = tl.program_id(0) * ROWS
    for row in range(first, tl.minimum(first + ROWS, rows)):
        value = tl.load(total + row)
        stop = tl.load(offsets + row + 1)
        for begin in range(tl.load(offsets + row), stop, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            tl.store(token + at, tl.zeros((BLOCK,), tl.float32) + value, mask=at < stop)


def hierarchical_advantage(
    columns: Columns[Tensor], rules: Rules, launch: Launch = PRODUCTION
) -> Levels[Tensor]:
    """`reference.hierarchical_advantage`; values are trusted, since to check them is to wait for the GPU."""
    offsets = columns.token_offsets
    tokens = 0 if offsets is None else int(offsets[-1])  # first, while nothing is queued
    rows, levels = len(columns.reward), 1 if columns.step_group is None else 2
    result = torch.zeros(3, rows, dtype=torch.float32, device=columns.reward.device)
    total, episode, step = result.unbind()
    token = None if offsets is None else total.new_empty(tokens)
    if rows:
        meta = _by_row(launch)
        values, segment = _values(columns, rules, levels, launch)
        statistics = _statistics(columns.step, values, segment, rules.unit == "rows", launch)
        exact = torch.empty_like(values[0])
        for level, rule in enumerate((rules.episode, rules.step)[:levels]):
            _launch(
                compare, rows, launch.block,
                values, segment, *statistics, exact, result[1 + level], total, rows, levels,
                **_constants(level, rule, rules.omega), **meta,
            )  # fmt: skip
        if token is not None:
            _launch(spread, rows, launch.filled, total, offsets, token, rows,
                    ROWS=launch.filled, BLOCK=launch.tokens, num_warps=4)  # fmt: skip
    return Levels(total, episode, step, token)


def _values(columns: Columns[Tensor], rules: Rules, levels: int, launch: Launch) -> tuple[Tensor, Tensor]:
    """Value and segment of every row on every level, [levels, N]; one sort puts rows in time order."""
    rows = len(columns.reward)
    block, meta = launch.block, _by_row(launch)
    key = columns.group << TRAJECTORY_BITS | columns.trajectory
    key, order = (key << STEP_BITS | columns.step).sort()
    starts, begin = torch.empty_like(key), torch.full((rows + 1,), rows, device=key.device)
    _launch(find_boundaries, rows, block, key, starts, rows, **meta)
    numbered = starts.cumsum(0)
    _launch(find_begins, rows, block, key, numbered, begin, rows, **meta)
    values = torch.empty(levels, rows, dtype=torch.float64, device=key.device)
    segment = torch.empty_like(values, dtype=torch.int64)
    _launch(
        walk, rows, launch.trajectories,
        columns.reward, columns.penalty, order, numbered, begin, columns.step_group, values, segment, rows,
        GAMMA=rules.gamma, EARLY=rules.penalty == "reward", SINGLE=rules.single,
        BLOCK=launch.trajectories, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return values, segment


def _statistics(
    step: Tensor, values: Tensor, segment: Tensor, by_row: bool, launch: Launch
) -> tuple[Tensor, Tensor]:
    """Bounds [2, levels * N] and (count, sum, sum of squares) [3, levels * N] of every segment."""
    levels, rows = values.shape
    bounds = torch.full((2, levels * rows), -(1 << 63), dtype=torch.int64, device=values.device)
    sums = torch.zeros(3, levels * rows, dtype=torch.int64, device=values.device)
    meta = _by_row(launch)
    for kernel in (find_extremes, sum_values, sum_squares):
        _launch(kernel, levels * rows, launch.block, step, values, segment, bounds, sums, rows, levels,
                BY_ROW=by_row, **meta)  # fmt: skip
    return bounds, sums


def _launch(kernel: Any, items: int, block: int, *arguments: Any, **meta: Any) -> None:
    """One program for every `block` of `items`."""
    kernel[(triton.cdiv(items, block),)](*arguments, **meta)


def _by_row(launch: Launch) -> dict[str, Any]:
    """Without fusion, because numpy rounds a product before it is added to something."""
    return {"BLOCK": launch.block, "num_warps": 4, "enable_fp_fusion": False}


def _constants(level: int, rule: Rule, omega: float) -> dict[str, Any]:
    return {"LEVEL": level, "OMEGA": omega, **{name.upper(): value for name, value in asdict(rule).items()}}


def _variants() -> tuple[Variant, ...]:
    integers = ("key", "starts", "numbered", "begin", "order", "step_group", "step", "segment", "bounds",
                "sums", "offsets")  # fmt: skip
    signature = {
        **dict.fromkeys(integers, "*i64"),
        **dict.fromkeys(("reward", "penalty", "values", "episode"), "*fp64"),
        **dict.fromkeys(("relative", "total", "token"), "*fp32"),
        **dict.fromkeys(("rows", "levels"), "i32"),
    }
    block, filled = {"BLOCK": PRODUCTION.block}, {"ROWS": PRODUCTION.filled, "BLOCK": PRODUCTION.tokens}
    walked = {"BLOCK": PRODUCTION.trajectories, "GAMMA": 0.95, "EARLY": True, "SINGLE": False}
    official = Rule(keep_lone=True, single=True)
    rules = {
        "paper": Rule(),
        "paper_mean": Rule(scale=False),
        "official": official,
        "official_mean": replace(official, scale=False),
        "rloo": Rule(scale=False, leave_one_out=True),
    }
    exact = partial(Variant, signature=signature, warps=4, stages=3, fusion=False)
    levels = [(name, rule, level) for name, rule in rules.items() for level in (0, 1)][:-1]
    return (
        exact("find_boundaries", find_boundaries, constants=block),
        exact("find_begins", find_begins, constants=block),
        exact("walk", walk, constants=walked, warps=1),
        exact("walk_one_level", walk, constants={**walked, "step_group": None}, warps=1),
        exact("walk_official", walk, constants={**walked, "EARLY": False, "SINGLE": True}, warps=1),
        *(
            exact(f"{kernel.fn.__name__}_{unit}", kernel, constants={**block, "BY_ROW": unit == "rows"})
            for kernel in (find_extremes, sum_values, sum_squares)
            for unit in ("trajectories", "rows")
        ),
        *(
            exact(f"compare_{name}_{level}", compare, constants={**block, **_constants(level, rule, 1.0)})
            for name, rule, level in levels  # RLOO has no step level
        ),
        exact("spread", spread, constants=filled, fusion=True),
    )


VARIANTS = _variants()
