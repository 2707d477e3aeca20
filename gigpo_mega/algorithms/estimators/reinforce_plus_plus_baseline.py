"""REINFORCE++ with the group mean as its baseline (arXiv 2501.03262) on whole episodes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gigpo_mega.algorithms.primitives import PRESETS, combine, relative, returns, step_columns
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, RowTable
from kernels.arrays import to_host


def reinforce_plus_plus_baseline(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """The score minus the task's mean, whitened over the whole iteration instead of the task.

        A' = R(tau) - mean R(tau)           over the trajectories of the task
        A = (A' - mean A') / std A'         over all response tokens of the iteration

    Epsilon is added to the standard deviation. A row's value depends on all rows of the iteration. `preset`
    reference: verl's `compute_reinforce_plus_plus_baseline_outcome_advantage`, which adds 1e-8 to the
    variance.
    """
    preset = PRESETS[cfg.preset]
    steps = step_columns(rows, cfg)
    score, _ = returns(steps, 1.0, preset)
    rule = replace(preset.task_rule(cfg), scale=False)
    centered = to_host(relative(score, steps.group, rule, preset.task_members(steps)))
    tokens = np.array([len(step.response_ids) for step in rows.steps], dtype=np.int64)
    count = int(tokens.sum())
    # Exactly rounded sums do not depend on the order of the rows.
    centered = centered - math.fsum(tokens * centered) / max(count, 1)
    variance = math.fsum(tokens * np.square(centered)) / max(count - 1, 1)
    official = cfg.preset == "reference"
    return combine(centered / (math.sqrt(variance + 1e-8) if official else math.sqrt(variance) + cfg.epsilon))
