"""Returns and group-relative values in numpy: float64 throughout, independent of the order of the rows.

A group's sums are taken in fixed point: integers add up to the same in every order, so rows may come in any
order and groups may be sharded over any number of ranks without a bit changing. The scale follows from a
group's members: 62 bits hold the sum, so a value keeps the 53 bits of float64 in groups of up to 512 members
and loses one bit each time the group doubles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.advantage.columns import Penalty, Rule, StepColumns

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

BITS = 62  # of a fixed-point sum; one more is its sign
MAX_EXPONENT = 1000  # of a scale: powers of two beyond are not normal numbers
EXPONENT_BIAS, MANTISSA = 1023, 52  # of float64


@dataclass(frozen=True, slots=True)
class Moments:
    """Statistics of S groups."""

    mean: Float64  # [S] 0 for a group without members
    std: Float64  # [S] 0 for a group of at most ddof members
    count: Int64  # [S]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Rows in order of trajectory and time; L trajectories."""

    order: Int64  # [N]
    begin: Int64  # [L] of each trajectory within `order`
    length: Int64  # [L]


def returns(
    steps: StepColumns[NDArray], gamma: float, penalty: Penalty = "reward", float32: bool = False
) -> tuple[Float64, Float64]:
    """Scores, summed in time order, and discounted returns of every row, [N].

    One vectorized pass for each step of the longest trajectory.
    """
    timeline = timeline_of(steps.trajectory, steps.step)
    order, length = timeline.order, timeline.length
    reward = (steps.reward - steps.penalty if penalty == "reward" else steps.reward)[order]
    index = np.repeat(np.arange(len(length)), length)
    discounted = reward.copy()
    last = (timeline.begin + length - 1)[np.argsort(-length, kind="stable")]
    longer = len(length) - np.cumsum(np.bincount(length))
    for step, trajectories in enumerate(longer[1:-1].tolist(), start=1):
        now = last[:trajectories] - step
        discounted[now] += gamma * discounted[now + 1]
    result = np.empty((2, len(order)))
    result[:, order] = np.bincount(index, reward)[index], discounted
    if penalty == "row":
        result -= steps.penalty
    if float32:
        result = to_float32(result)
    return result[0], result[1]


def timeline_of(trajectory: Int64, step: Int64) -> Timeline:
    """The order of time; ValueError unless each trajectory has the steps 0, 1, 2, ... exactly once."""
    later = np.diff(trajectory) + (np.diff(trajectory) == 0) * np.sign(np.diff(step))
    order = np.arange(len(step)) if (later > 0).all() else np.lexsort((step, trajectory))
    owner = trajectory[order]
    begin = np.flatnonzero(np.diff(owner, prepend=owner[:1] - 1))
    length = np.diff(begin, append=len(order))
    expected = np.arange(len(order)) - np.repeat(begin, length)
    wrong = np.flatnonzero(step[order] != expected)
    if len(wrong):
        at = wrong[0]
        raise ValueError(
            f"trajectory {owner[at]} has step {step[order[at]]} where step {expected[at]} was due: "
            "advantages need every step exactly once; copy, pad or drop rows afterwards"
        )
    return Timeline(order, begin, length)


def relative(values: Float64, group: Int64, rule: Rule, member: Bool | None = None) -> Float64:
    """`(value - mean) / F_norm` within each `group` [N], statistics over the rows of `member` [N]."""
    groups = int(group.max(initial=-1)) + 1
    sample = slice(None) if member is None else member
    stats = moments(values[sample], group[sample], groups, rule.ddof)
    mean, std = (to_float32(stats.mean), to_float32(stats.std)) if rule.float32 else (stats.mean, stats.std)
    if rule.keep_lone:
        lone = stats.count == 1
        mean, std = np.where(lone, 0.0, mean), np.where(lone, 1.0, std)
    centered = values - mean[group]
    if rule.leave_one_out:
        # R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean_j R_j)
        centered *= (stats.count / np.maximum(stats.count - 1, 1))[group]
    return centered / (std[group] + rule.epsilon) if rule.scale else centered


def moments(values: Float64, group: Int64, groups: int, ddof: int = 1) -> Moments:
    """Mean and standard deviation of `values` [M] within each `group` [M] of 0..`groups`-1.

    Independent of the order of the members, bit for bit. Identical values have exactly that mean and exactly
    no deviation, because sums run over the differences to the smallest member. Magnitudes up to 1e150.
    """
    count = np.bincount(group, minlength=groups)
    low, high = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    low, high = np.where(count, low, 0.0), np.where(count, high, 0.0)
    divisor = np.maximum(count, 1)
    mean = low + _sums(values - low[group], group, high - low, count) / divisor
    farthest = np.maximum(np.square(high - mean), np.square(mean - low))
    squares = _sums(np.square(values - mean[group]), group, farthest, count)
    return Moments(mean, np.sqrt(squares / np.maximum(count - ddof, 1)), count)


def _sums(values: Float64, group: Int64, largest: Float64, count: Int64) -> Float64:
    """Sums of non-negative `values` [M] by group, none above `largest` [S], in fixed point."""
    power = ((largest * count).view(np.int64) >> MANTISSA) - EXPONENT_BIAS + 1  # largest * count < 2^power
    exponent = np.clip(BITS - power, -MAX_EXPONENT, MAX_EXPONENT)
    total = np.zeros(len(count), dtype=np.int64)
    np.add.at(total, group, (values * _power_of_two(exponent)[group] + 0.5).astype(np.int64))
    return total * _power_of_two(-exponent)


def _power_of_two(exponent: Int64) -> Float64:
    return ((exponent + EXPONENT_BIAS) << MANTISSA).view(np.float64)


def to_float32(values: Float64) -> Float64:
    """`values` as an implementation in float32 has them: division by a small deviation makes that visible."""
    return values.astype(np.float32).astype(np.float64)
