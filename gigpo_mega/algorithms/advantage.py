"""Advantage estimators over the columns of a row table: GiGPO (arXiv 2505.10978), GRPO and RLOO.

Each is a set of rules for `kernels.advantage`, whose values depend on nothing but a row's groups: rows may
come in any order, tasks may be sharded over any number of ranks, and not a bit changes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gigpo_mega.algorithms.grouping import similar_groups
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, Int64, RowTable
from kernels.advantage import Columns, Rule, Rules, hierarchical_advantage
from kernels.anchor import group_ids

_LARGEST_REWARD = 1e100  # squares of sums of these are finite


def estimate(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """The advantage of every row by `cfg.estimator`; all rows of a task group must be in `rows`.

    Raises ValueError for a reward that is not finite (naming the row), and for a trajectory whose steps are
    not 0, 1, 2, ... exactly once: rows are copied or padded after this, with weight 0.
    """
    _check_rewards(rows)
    anchors = anchor_groups(rows, cfg) if cfg.estimator == "gigpo" else None
    levels = hierarchical_advantage(columns(rows, cfg, anchors), rules(cfg))
    none = np.full(len(rows), -1, dtype=np.int64)
    return Advantages(levels.total, levels.episode, levels.step, none if anchors is None else anchors)


def rules(cfg: AdvantageConfig) -> Rules:
    """The estimator in the terms of `kernels.advantage`.

    `gigpo` has both levels, `grpo` and `rloo` the first alone, `rloo` with the mean of the OTHER members as
    the baseline and never scaled. `preset: reference` is the official implementation, in float32: every row
    counts once, a lone one keeps its score, and an invalid action costs its own row alone.
    """
    rloo, official = cfg.estimator == "rloo", cfg.preset == "reference"
    rule = Rule(
        scale=cfg.normalization == "mean_std" and not rloo,
        epsilon=cfg.epsilon,
        leave_one_out=rloo,
        single=official,
    )
    return Rules(
        episode=replace(rule, keep_lone=official),
        step=rule,
        gamma=cfg.gamma,
        omega=cfg.omega,
        unit="rows" if official else "trajectories",
        penalty="row" if official else "reward",
        single=official,
    )


def columns(rows: RowTable, cfg: AdvantageConfig, anchors: Int64 | None = None) -> Columns[np.ndarray]:
    """The columns that `kernels.advantage` reads."""
    penalty = np.where(rows.valid, 0.0, cfg.invalid_penalty)
    return Columns(rows.reward, penalty, rows.group, rows.trajectory, rows.step, anchors)


def anchor_groups(rows: RowTable, cfg: AdvantageConfig) -> Int64:
    """The step-level group of every row [N] (Eq. 6): equal anchor keys, or similar observation texts."""
    if cfg.similarity is None:
        return group_ids(rows.group, rows.anchor)
    texts = [step.observation for step in rows.steps]
    if not any(texts):
        raise ValueError(
            f"advantage.similarity {cfg.similarity} compares observation texts, but no step has one: "
            "record Step.observation, or unset advantage.similarity"
        )
    return similar_groups(texts, rows.group, cfg.similarity)


def _check_rewards(rows: RowTable) -> None:
    bad = np.flatnonzero(~(np.abs(rows.reward) <= _LARGEST_REWARD))
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"reward of row {row} (group {rows.group[row]}, trajectory {rows.trajectory[row]}, "
            f"step {rows.step[row]}) is {rows.reward[row]}: the environment must return finite rewards, "
            f"at most {_LARGEST_REWARD:g} in size"
        )
