"""REINFORCE leave-one-out (RLOO, arXiv 2402.14740) on whole episodes."""

from __future__ import annotations

from dataclasses import replace

from gigpo_mega.algorithms.primitives import PRESETS, combine, relative, returns, step_columns
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, RowTable
from kernels.advantage import Rule


def rloo(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """The score minus the mean score of the OTHER trajectories of the task; never scaled.

    A_i = R(tau_i) - mean_{j != i} R(tau_j) = n / (n - 1) (R(tau_i) - mean_j R(tau_j))
    """
    preset = PRESETS[cfg.preset]
    steps = step_columns(rows, cfg)
    score, _ = returns(steps, 1.0, preset)
    return combine(relative(score, steps.group, leave_one_out(cfg), preset.task_members(steps)))


def leave_one_out(cfg: AdvantageConfig) -> Rule:
    """How a score is compared with those of the others of its task."""
    return replace(PRESETS[cfg.preset].task_rule(cfg), scale=False, leave_one_out=True)
