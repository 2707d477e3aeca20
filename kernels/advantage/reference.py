"""Advantages in numpy, on one core: float64 throughout, and independent of the order of the rows by design.

A group's statistics are sums in fixed point: integers add up to the same in every order, so rows may come in
any order, tasks may be sharded over any number of ranks, and not a bit changes. A group's scale follows from
its members: 62 bits hold the sum, so up to 512 members have the 53 of float64, twice as many one less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.advantage.columns import Columns, Levels, Rule, Rules

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

BITS = 62  # of a fixed-point sum; one more is its sign
MAX_EXPONENT = 1000  # of a scale: beyond, powers of two are no normal numbers
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


def hierarchical_advantage(columns: Columns[NDArray], rules: Rules) -> Levels[NDArray]:
    """`A = A_E + omega A_S` of every row, see the package."""
    timeline = timeline_of(columns.trajectory, columns.step)
    score, returns = score_and_returns(columns, rules, timeline)
    task = _of_trajectories(columns.group, timeline)
    member = columns.step == 0 if rules.unit == "trajectories" else None
    episode = relative(score, task, rules.episode, member)
    step = np.zeros_like(episode)
    if columns.step_group is not None:
        step = relative(returns, columns.step_group, rules.step)
    return combine(episode, step, rules.omega, columns.token_offsets)


def combine(
    episode: Float64, step: Float64, omega: float, token_offsets: Int64 | None = None
) -> Levels[NDArray]:
    """Both levels [N] added up, rounded to float32 and repeated for the tokens of every row."""
    total = (episode + omega * step).astype(np.float32)
    token = None if token_offsets is None else np.repeat(total, np.diff(token_offsets))
    return Levels(total, episode.astype(np.float32), step.astype(np.float32), token)


def score_and_returns(
    columns: Columns[NDArray], rules: Rules, timeline: Timeline | None = None
) -> tuple[Float64, Float64]:
    """R(tau) of every row's trajectory, summed in time order, and the discounted return of every row, [N].

    `R_t = r_t + gamma R_{t+1}`; one vectorised pass per step of the longest trajectory.
    """
    timeline = timeline or timeline_of(columns.trajectory, columns.step)
    order, length = timeline.order, timeline.length
    early = rules.penalty == "reward"
    reward = (columns.reward - columns.penalty if early else columns.reward)[order]
    index = np.repeat(np.arange(len(length)), length)
    returns = reward.copy()
    last = (timeline.begin + length - 1)[np.argsort(-length, kind="stable")]
    longer = len(length) - np.cumsum(np.bincount(length))
    for step, trajectories in enumerate(longer[1:-1].tolist(), start=1):
        now = last[:trajectories] - step
        returns[now] += rules.gamma * returns[now + 1]
    result = np.empty((2, len(order)))
    result[:, order] = np.bincount(index, reward)[index], returns
    if not early:
        result -= columns.penalty
    if rules.single:
        result = _single(result)
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


def relative(values: Float64, segment: Int64, rule: Rule, member: Bool | None = None) -> Float64:
    """`(value - mean) / F_norm` within each `segment` [N] (Eq. 3, 7), statistics over `member` rows [N]."""
    segments = int(segment.max(initial=-1)) + 1
    sample = slice(None) if member is None else member
    stats = moments(values[sample], segment[sample], segments, rule.ddof)
    mean, std = (_single(stats.mean), _single(stats.std)) if rule.single else (stats.mean, stats.std)
    if rule.keep_lone:
        lone = stats.count == 1
        mean, std = np.where(lone, 0.0, mean), np.where(lone, 1.0, std)
    centred = values - mean[segment]
    if rule.leave_one_out:
        centred *= (stats.count / np.maximum(stats.count - 1, 1))[segment]
    return centred / (std[segment] + rule.epsilon) if rule.scale else centred


def moments(values: Float64, segment: Int64, segments: int, ddof: int = 1) -> Moments:
    """Mean and standard deviation of `values` [M] within each `segment` [M] of 0..`segments`-1.

    Independent of the order of the members, bit for bit. Identical values have exactly that mean and exactly
    no deviation, because sums run over the differences to the smallest member. Magnitudes up to 1e150.
    """
    count = np.bincount(segment, minlength=segments)
    low, high = np.full(segments, np.inf), np.full(segments, -np.inf)
    np.minimum.at(low, segment, values)
    np.maximum.at(high, segment, values)
    low, high = np.where(count, low, 0.0), np.where(count, high, 0.0)
    divisor = np.maximum(count, 1)
    mean = low + _sums(values - low[segment], segment, high - low, count) / divisor
    farthest = np.maximum(np.square(high - mean), np.square(mean - low))
    squares = _sums(np.square(values - mean[segment]), segment, farthest, count)
    return Moments(mean, np.sqrt(squares / np.maximum(count - ddof, 1)), count)


def _sums(values: Float64, segment: Int64, largest: Float64, count: Int64) -> Float64:
    """Sums of non-negative `values` [M] by segment, none above `largest` [S], in fixed point."""
    power = ((largest * count).view(np.int64) >> MANTISSA) - EXPONENT_BIAS + 1  # largest * count < 2^power
    exponent = np.clip(BITS - power, -MAX_EXPONENT, MAX_EXPONENT)
    total = np.zeros(len(count), dtype=np.int64)
    np.add.at(total, segment, (values * _power_of_two(exponent)[segment] + 0.5).astype(np.int64))
    return total * _power_of_two(-exponent)


def _power_of_two(exponent: Int64) -> Float64:
    return ((exponent + EXPONENT_BIAS) << MANTISSA).view(np.float64)


def _of_trajectories(group: Int64, timeline: Timeline) -> Int64:
    """Task groups [N] numbered from 0."""
    order, begin, length = timeline.order, timeline.begin, timeline.length
    result = np.empty_like(order)
    result[order] = np.repeat(np.unique(group[order[begin]], return_inverse=True)[1], length)
    return result


def _single(values: Float64) -> Float64:
    """As an implementation in float32 sees them: dividing by a small deviation makes that visible."""
    return values.astype(np.float32).astype(np.float64)
