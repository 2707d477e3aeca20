"""Advantage estimators over the columns of a row table (GiGPO, arXiv 2505.10978; GRPO; RLOO).

Computed in float64, but for what `preset: reference` rounds as the official implementation does. A group's
statistics are accumulated over its members in ascending order of value, so they depend on nothing but the
group: rows may come in any order, tasks may be sharded over any number of ranks, and not a bit changes.

Shape letters: N rows, M members that enter a statistic, S groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gigpo_mega.algorithms.grouping import similar_groups, step_groups
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, Bool, Float64, Int64, RowTable


@dataclass(frozen=True, slots=True)
class Moments:
    """Statistics of every group."""

    mean: Float64  # [S]
    std: Float64  # [S] unbiased (n - 1); 0 for a group of fewer than two members
    count: Int64  # [S]


@dataclass(frozen=True, slots=True)
class Episodes:
    """What the episode level knows of every row."""

    score: Float64  # [N] R(tau) of the row's trajectory
    group: Int64  # [N] task group, 0..S-1
    member: Bool  # [N] whether the row's score enters the statistics of its group


def estimate(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """The advantage of every row by `cfg.estimator`; all rows of a task group must be in `rows`.

    Raises ValueError for a reward that is not finite (naming the row), and for a trajectory whose steps are
    not 0, 1, 2, ... exactly once: rows are copied or padded after this, with weight 0.
    """
    _check_rewards(rows)
    episodes = episode_scores(rows, cfg)
    if cfg.estimator == "gigpo":
        return gigpo(episodes, step_returns(rows, cfg), anchor_groups(rows, cfg), cfg)
    if cfg.estimator == "grpo":
        return grpo(episodes, cfg)
    return rloo(episodes, cfg)


def gigpo(episodes: Episodes, returns: Float64, step_group: Int64, cfg: AdvantageConfig) -> Advantages:
    """`A = A_E + omega A_S` (Eq. 8): the episode level of GRPO, the step level over anchor groups (Eq. 7)."""
    episode = _normalize(episodes.score, episodes.group, _episode_moments(episodes, cfg), cfg)
    step = _normalize(returns, step_group, _moments(returns, step_group, cfg), cfg)
    return _advantages(episode + cfg.omega * step, episode, step, step_group)


def grpo(episodes: Episodes, cfg: AdvantageConfig) -> Advantages:
    """`A_E = (R - mean R) / F_norm` over the task group (Eq. 3)."""
    episode = _normalize(episodes.score, episodes.group, _episode_moments(episodes, cfg), cfg)
    return _without_steps(episode)


def rloo(episodes: Episodes, cfg: AdvantageConfig) -> Advantages:
    """The score less the mean score of the OTHER members of the task group (leave-one-out), never scaled."""
    stats = _episode_moments(episodes, cfg)
    others = stats.count / np.maximum(stats.count - 1, 1)
    episode = (episodes.score - stats.mean[episodes.group]) * others[episodes.group]
    return _without_steps(episode)


def moments(values: Float64, segment: Int64, segments: int) -> Moments:
    """Mean and unbiased standard deviation of `values` [M] within each `segment` [M] of 0..`segments`-1.

    Independent of the order of the members, bit for bit. Identical values have exactly that mean and exactly
    no deviation, because sums run over the differences to the smallest member.
    """
    order = np.argsort(values)
    values, segment = values[order], segment[order]
    count = np.bincount(segment, minlength=segments)
    smallest = np.zeros(segments)
    smallest[segment[::-1]] = values[::-1]
    excess = np.bincount(segment, values - smallest[segment], segments)
    mean = smallest + excess / np.maximum(count, 1)
    squares = np.bincount(segment, np.square(values - mean[segment]), segments)
    return Moments(mean, np.sqrt(squares / np.maximum(count - 1, 1)), count)


def discounted_returns(reward: Float64, trajectory: Int64, step: Int64, gamma: float) -> Float64:
    """`R_t = sum_{k>=t} gamma^(k-t) r_k` (Eq. 5) for every row [N], over the later steps of its trajectory.

    Rows may come in any order, `step` says when they happened; raises ValueError unless each trajectory has
    the steps 0, 1, 2, ... exactly once. One vectorised pass per step of the longest trajectory.
    """
    order = _time_order(trajectory, step)
    ends = np.flatnonzero(step[order] == 0)[1:] - 1
    ends = np.append(ends, len(order) - 1)
    lengths = np.diff(ends, prepend=-1)
    remaining = np.repeat(ends, lengths) - np.arange(len(order))
    returns = reward[order]
    by_remaining = np.argsort(remaining, kind="stable")
    bounds = np.cumsum(np.bincount(remaining))
    for begin, end in pairwise(bounds.tolist()):
        now = by_remaining[begin:end]
        returns[now] += gamma * returns[now + 1]
    result = np.empty_like(returns)
    result[order] = returns
    return result


def episode_scores(rows: RowTable, cfg: AdvantageConfig) -> Episodes:
    """The episode level of `rows`: every trajectory counts once, or under `preset: reference` every row.

    An invalid action's penalty is part of its step's reward; under `preset: reference` it touches the score
    of that row alone. Raises ValueError as `discounted_returns` does.
    """
    reference = cfg.preset == "reference"
    penalty = _penalty(rows, cfg)
    order = _time_order(rows.trajectory, rows.step)
    reward = (rows.reward if reference else rows.reward - penalty)[order]
    index = np.cumsum(rows.step[order] == 0) - 1
    score = np.empty(len(rows))
    score[order] = np.bincount(index, reward)[index]
    _, group = np.unique(rows.group, return_inverse=True)
    if reference:
        return Episodes(_single(score - penalty), group, np.ones(len(rows), dtype=np.bool_))
    return Episodes(score, group, rows.step == 0)


def step_returns(rows: RowTable, cfg: AdvantageConfig) -> Float64:
    """The discounted return of every row [N], an invalid action's penalty taken from its step's reward.

    Under `preset: reference` the penalty is taken after discounting, so that earlier steps don't feel it.
    """
    penalty = _penalty(rows, cfg)
    if cfg.preset == "reference":
        raw = discounted_returns(rows.reward, rows.trajectory, rows.step, cfg.gamma)
        return _single(raw - penalty)
    return discounted_returns(rows.reward - penalty, rows.trajectory, rows.step, cfg.gamma)


def anchor_groups(rows: RowTable, cfg: AdvantageConfig) -> Int64:
    """The step-level group of every row [N] (Eq. 6): equal anchor keys, or similar observation texts."""
    if cfg.similarity is None:
        return step_groups(rows.group, rows.anchor)
    texts = [step.observation for step in rows.steps]
    if not any(texts):
        raise ValueError(
            f"advantage.similarity {cfg.similarity} compares observation texts, but no step has one: "
            "record Step.observation, or unset advantage.similarity"
        )
    return similar_groups(texts, rows.group, cfg.similarity)


def _check_rewards(rows: RowTable) -> None:
    bad = np.flatnonzero(~np.isfinite(rows.reward))
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"reward of row {row} (group {rows.group[row]}, trajectory {rows.trajectory[row]}, "
            f"step {rows.step[row]}) is {rows.reward[row]}: the environment must return finite rewards"
        )


def _time_order(trajectory: Int64, step: Int64) -> Int64:
    """Rows by trajectory, then time."""
    order = np.lexsort((step, trajectory))
    owner = trajectory[order]
    starts = np.ones(len(order), dtype=np.bool_)
    starts[1:] = owner[1:] != owner[:-1]
    begin = np.flatnonzero(starts)
    expected = np.arange(len(order)) - np.repeat(begin, np.diff(begin, append=len(order)))
    wrong = np.flatnonzero(step[order] != expected)
    if len(wrong):
        at = wrong[0]
        raise ValueError(
            f"trajectory {owner[at]} has step {step[order[at]]} where step {expected[at]} was due: "
            "advantages need every step exactly once; copy, pad or drop rows afterwards"
        )
    return order


def _penalty(rows: RowTable, cfg: AdvantageConfig) -> Float64:
    return np.where(rows.valid, 0.0, cfg.invalid_penalty)


def _moments(values: Float64, segment: Int64, cfg: AdvantageConfig) -> Moments:
    stats = moments(values, segment, int(segment.max(initial=-1)) + 1)
    if cfg.preset == "paper":
        return stats
    return Moments(_single(stats.mean), _single(stats.std), stats.count)


def _single(values: Float64) -> Float64:
    """verl-agent computes in float32, and dividing by a small deviation makes that visible."""
    return values.astype(np.float32).astype(np.float64)


def _episode_moments(episodes: Episodes, cfg: AdvantageConfig) -> Moments:
    stats = _moments(episodes.score[episodes.member], episodes.group[episodes.member], cfg)
    if cfg.preset == "paper":
        return stats
    lone = stats.count == 1  # verl-agent keeps the raw score of a lone row
    return Moments(np.where(lone, 0.0, stats.mean), np.where(lone, 1.0, stats.std), stats.count)


def _normalize(values: Float64, segment: Int64, stats: Moments, cfg: AdvantageConfig) -> Float64:
    centred = values - stats.mean[segment]
    return centred if cfg.normalization == "mean" else centred / (stats.std[segment] + cfg.epsilon)


def _advantages(total: Float64, episode: Float64, step: Float64, step_group: Int64) -> Advantages:
    single = np.float32
    return Advantages(total.astype(single), episode.astype(single), step.astype(single), step_group)


def _without_steps(episode: Float64) -> Advantages:
    return _advantages(episode, episode, np.zeros_like(episode), np.full(len(episode), -1, dtype=np.int64))
