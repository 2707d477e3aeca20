"""Group Relative Policy Optimization (GRPO, arXiv 2402.03300) on whole episodes."""

from __future__ import annotations

from gigpo_mega.algorithms.primitives import PRESETS, combine, relative, returns, step_columns
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, RowTable


def grpo(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """Every step has its episode's advantage: GiGPO's first level alone.

        A = (R(tau) - mean R(tau)) / F_norm    over the trajectories of the task          (Eq. 3)

    F_norm is the standard deviation plus epsilon, or 1 (Dr. GRPO).
    """
    preset = PRESETS[cfg.preset]
    steps = step_columns(rows, cfg)
    score, _ = returns(steps, 1.0, preset)
    return combine(relative(score, steps.group, preset.task_rule(cfg), preset.task_members(steps)))  # Eq. 3
