"""Returns and group-relative values on the GPU, bit for bit as in `reference`: sums of integers by atomics.

A group's statistics are stored at its number, which is below N, so the host has nothing to count first.
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

from kernels.advantage import reference
from kernels.advantage.columns import Penalty, Rule, StepColumns
from kernels.advantage.reference import BITS, EXPONENT_BIAS, MANTISSA, MAX_EXPONENT
from kernels.aot import Variant

STEP_BITS = 20  # of the sort key; the trajectory has the others

_BITS, _BIAS = tl.constexpr(BITS), tl.constexpr(EXPONENT_BIAS)
_MANTISSA, _MAX_EXPONENT = tl.constexpr(MANTISSA), tl.constexpr(MAX_EXPONENT)
_STEP_BITS, _STEP_MASK = tl.constexpr(STEP_BITS), tl.constexpr((1 << STEP_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Launch:
    """Meta-parameters; production takes the defaults."""

    block: int = 256  # rows of a program
    trajectories: int = 32  # of a program: each is walked by one lane

    @property
    def by_row(self) -> dict[str, Any]:
        """Options of kernels over rows: without fusion, because numpy rounds a product before it adds it."""
        return {"BLOCK": self.block, "num_warps": 4, "enable_fp_fusion": False}


PRODUCTION = Launch()


@triton.jit(do_not_specialize=["rows"])
def find_starts(key, starts, wrong, rows, BLOCK: tl.constexpr):
    """1 in `starts` if a sorted row begins a trajectory; `wrong` is set unless its steps are 0, 1, 2, ..."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    now = tl.load(key + i, mask=live, other=0)
    before = tl.load(key + i - 1, mask=live & (i > 0), other=-1)
    first = (now >> _STEP_BITS) != (before >> _STEP_BITS)
    expected = tl.where(first, 0, (before & _STEP_MASK) + 1)
    tl.store(starts + i, first.to(tl.int64), mask=live)
    tl.store(wrong + i * 0, 1, mask=live & ((now & _STEP_MASK) != expected))


@triton.jit(do_not_specialize=["rows"])
def find_begins(starts, numbered, begin, rows, BLOCK: tl.constexpr):
    """The first sorted row of every trajectory."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(starts + i, mask=i < rows, other=0) == 1
    trajectory = tl.load(numbered + i, mask=first, other=1) - 1
    tl.store(begin + trajectory, i.to(tl.int64), mask=first)


@triton.jit(do_not_specialize=["rows"])
def walk(
    reward, penalty, order, begin, score, discounted, rows,
    GAMMA: tl.constexpr, IN_REWARD: tl.constexpr, FLOAT32: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum rewards forwards and discount them backwards along BLOCK trajectories."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(begin + t, mask=t < rows, other=rows)
    length = tl.load(begin + t + 1, mask=t < rows, other=rows) - first
    longest = tl.max(length)
    total = tl.zeros((BLOCK,), tl.float64)
    for k in range(longest):
        live = k < length
        row = tl.load(order + first + k, mask=live, other=0)
        total += _reward(reward, penalty, row, live, IN_REWARD)
    following = tl.zeros((BLOCK,), tl.float64)
    for k in range(longest):
        live = k < length
        row = tl.load(order + first + length - 1 - k, mask=live, other=0)
        following = _reward(reward, penalty, row, live, IN_REWARD) + following * GAMMA
        of_row = 0.0 if IN_REWARD else tl.load(penalty + row, mask=live, other=0.0)
        tl.store(score + row, _rounded(total - of_row, FLOAT32), mask=live)
        tl.store(discounted + row, _rounded(following - of_row, FLOAT32), mask=live)


@triton.jit
def _reward(reward, penalty, row, live, IN_REWARD: tl.constexpr):
    r = tl.load(reward + row, mask=live, other=0.0)
    return r - tl.load(penalty + row, mask=live, other=0.0) if IN_REWARD else r


@triton.jit
def _rounded(x, FLOAT32: tl.constexpr):
    return x.to(tl.float32).to(tl.float64) if FLOAT32 else x


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
def _members(values, group, member, i, rows):
    """Whether row i enters the statistics, its value and its group."""
    counts = i < rows
    if member is not None:
        counts &= tl.load(member + i, mask=counts, other=0) != 0
    value = tl.load(values + i, mask=counts, other=0.0)
    return counts, value, tl.load(group + i, mask=counts, other=0)


@triton.jit
def _extremes(bounds, g, rows, mask):
    low = _sortable(~tl.load(bounds + g, mask=mask, other=-1)).to(tl.float64, bitcast=True)
    high = _sortable(tl.load(bounds + rows + g, mask=mask, other=0)).to(tl.float64, bitcast=True)
    return low, high


@triton.jit
def _mean(bounds, sums, g, rows, mask):
    """Mean, the largest squared distance to it, and the number of members, of each group that has members."""
    low, high = _extremes(bounds, g, rows, mask)
    count = tl.load(sums + g, mask=mask, other=1).to(tl.float64)
    total = tl.load(sums + rows + g, mask=mask, other=0).to(tl.float64)
    mean = low + total * _power_of_two(-_exponent(high - low, count)) / count
    above, below = high - mean, mean - low
    return mean, tl.maximum(above * above, below * below), count


@triton.jit(do_not_specialize=["rows"])
def find_extremes(values, group, member, bounds, sums, rows, BLOCK: tl.constexpr):
    """Smallest (as the largest complement), largest, and number of members of each group."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts, value, g = _members(values, group, member, i, rows)
    bits = _sortable((value + 0.0).to(tl.int64, bitcast=True))
    tl.atomic_max(bounds + g, ~bits, mask=counts, sem="relaxed")
    tl.atomic_max(bounds + rows + g, bits, mask=counts, sem="relaxed")
    tl.atomic_add(sums + g, 1, mask=counts, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def sum_values(values, group, member, bounds, sums, rows, BLOCK: tl.constexpr):
    """Sums of the differences to the smallest member, in fixed point."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts, value, g = _members(values, group, member, i, rows)
    low, high = _extremes(bounds, g, rows, counts)
    count = tl.load(sums + g, mask=counts, other=1).to(tl.float64)
    scaled = (value - low) * _power_of_two(_exponent(high - low, count))
    tl.atomic_add(sums + rows + g, (scaled + 0.5).to(tl.int64), mask=counts, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def sum_squares(values, group, member, bounds, sums, rows, BLOCK: tl.constexpr):
    """Sums of the squared differences to the mean, in fixed point."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts, value, g = _members(values, group, member, i, rows)
    mean, farthest, count = _mean(bounds, sums, g, rows, counts)
    scaled = (value - mean) * (value - mean) * _power_of_two(_exponent(farthest, count))
    tl.atomic_add(sums + 2 * rows + g, (scaled + 0.5).to(tl.int64), mask=counts, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def compare(
    values, group, bounds, sums, result, rows,
    SCALE: tl.constexpr, EPSILON: tl.constexpr, DDOF: tl.constexpr,
    LEAVE_ONE_OUT: tl.constexpr, KEEP_LONE: tl.constexpr, FLOAT32: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each value relative to the statistics of its group."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < rows
    g = tl.load(group + i, mask=live, other=0)
    mean, farthest, count = _mean(bounds, sums, g, rows, live)
    squares = tl.load(sums + 2 * rows + g, mask=live, other=0).to(tl.float64)
    variance = squares * _power_of_two(-_exponent(farthest, count)) / tl.maximum(count - DDOF, 1.0)
    std = _rounded(tl.sqrt(variance), FLOAT32)
    mean = tl.where(count > 0.0, _rounded(mean, FLOAT32), 0.0)  # else NaN, and no squares were added
    if KEEP_LONE:
        mean = tl.where(count == 1.0, 0.0, mean)
        std = tl.where(count == 1.0, 1.0, std)
    value = tl.load(values + i, mask=live, other=0.0) - mean
    if LEAVE_ONE_OUT:
        value *= count / tl.maximum(count - 1.0, 1.0)
    if SCALE:
        value /= std + EPSILON
    tl.store(result + i, value, mask=live)


def returns(
    steps: StepColumns[Tensor], gamma: float, penalty: Penalty, float32: bool, launch: Launch = PRODUCTION
) -> tuple[Tensor, Tensor]:
    """`reference.returns`: one sort brings rows into time order; waits once for the GPU."""
    rows = len(steps.reward)
    result = torch.empty(2, rows, dtype=torch.float64, device=steps.reward.device)
    if rows:
        key, order = (steps.trajectory << STEP_BITS | steps.step).sort()
        starts, wrong = torch.empty_like(key), key.new_zeros(1)
        begin = torch.full((rows + 1,), rows, device=key.device)
        _launch(find_starts, rows, launch.block, key, starts, wrong, rows, **launch.by_row)
        _launch(find_begins, rows, launch.block, starts, starts.cumsum(0), begin, rows, **launch.by_row)
        _launch(
            walk, rows, launch.trajectories,
            steps.reward, steps.penalty, order, begin, result[0], result[1], rows,
            GAMMA=gamma, IN_REWARD=penalty == "reward", FLOAT32=float32,
            BLOCK=launch.trajectories, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
        if wrong.item():
            reference.timeline_of(steps.trajectory.cpu().numpy(), steps.step.cpu().numpy())  # raises
    return result[0], result[1]


def relative(
    values: Tensor, group: Tensor, rule: Rule, member: Tensor | None = None, launch: Launch = PRODUCTION
) -> Tensor:
    """`reference.relative` in four launches."""
    rows, result = len(values), torch.empty_like(values)
    if rows:
        bounds = torch.full((2, rows), -(1 << 63), dtype=torch.int64, device=values.device)
        sums = torch.zeros(3, rows, dtype=torch.int64, device=values.device)  # count, sum, sum of squares
        counted = None if member is None else member.view(torch.uint8)
        for kernel in (find_extremes, sum_values, sum_squares):
            _launch(kernel, rows, launch.block, values, group, counted, bounds, sums, rows, **launch.by_row)
        _launch(
            compare, rows, launch.block,
            values, group, bounds, sums, result, rows, **_constants(rule), **launch.by_row,
        )  # fmt: skip
    return result


def _launch(kernel: Any, items: int, block: int, *arguments: Any, **meta: Any) -> None:
    """One program for every `block` of `items`."""
    kernel[(triton.cdiv(items, block),)](*arguments, **meta)


def _constants(rule: Rule) -> dict[str, Any]:
    return {name.upper(): value for name, value in asdict(rule).items()}


def variants() -> tuple[Variant, ...]:
    """Every kernel as production launches it, and each rule."""
    integers = ("key", "starts", "wrong", "numbered", "begin", "order", "group", "bounds", "sums")
    signature = {
        **dict.fromkeys(integers, "*i64"),
        **dict.fromkeys(("reward", "penalty", "score", "discounted", "values", "result"), "*fp64"),
        "member": "*u8",
        "rows": "i32",
    }
    block = {"BLOCK": PRODUCTION.block}
    walked = {"BLOCK": PRODUCTION.trajectories, "GAMMA": 0.95, "IN_REWARD": True, "FLOAT32": False}
    official = Rule(float32=True)
    rules = {
        "paper": Rule(),
        "paper_mean": Rule(scale=False),
        "official_task": replace(official, keep_lone=True),
        "official_task_mean": replace(official, keep_lone=True, scale=False),
        "official_anchor": official,
        "official_anchor_mean": replace(official, scale=False),
        "rloo": Rule(scale=False, leave_one_out=True),
    }
    exact = partial(Variant, signature=signature, warps=4, stages=3, fusion=False)
    return (
        exact("find_starts", find_starts, constants=block),
        exact("find_begins", find_begins, constants=block),
        exact("walk", walk, constants=walked, warps=1),
        exact("walk_official", walk, constants={**walked, "IN_REWARD": False, "FLOAT32": True}, warps=1),
        *(
            exact(f"{kernel.fn.__name__}_{name}", kernel, constants={**block, **constants})
            for kernel in (find_extremes, sum_values, sum_squares)
            for name, constants in (("rows", {"member": None}), ("members", {}))
        ),
        *(
            exact(f"compare_{name}", compare, constants={**block, **_constants(rule)})
            for name, rule in rules.items()
        ),
    )
