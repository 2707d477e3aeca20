"""Group-in-Group Policy Optimization (GiGPO, arXiv 2505.10978, NeurIPS 2025)."""

from __future__ import annotations

from gigpo_mega.algorithms.primitives import PRESETS, anchor_groups, combine, relative, returns, step_columns
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, RowTable


def gigpo(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """Credit on two levels: episodes of one task are compared, and steps taken in the same state.

        A_E = (R(tau) - mean R(tau)) / F_norm    over the trajectories of the task        (Eq. 3)
        R_t = sum_{k >= t} gamma^(k - t) r_k                                              (Eq. 5)
        G_S(s) = steps of the task whose anchor state is s                                (Eq. 6)
        A_S = (R_t - mean R_t) / F_norm          over G_S(s)                              (Eq. 7)
        A = A_E + omega A_S                                                               (Eq. 8)

    F_norm is the standard deviation plus epsilon, or 1. A step alone in its group has A_S = 0. `cfg` may
    weigh A_E, too.
    """
    preset = PRESETS[cfg.preset]
    steps = step_columns(rows, cfg)
    score, discounted = returns(steps, cfg.gamma, preset)  # R(tau) and Eq. 5
    episode = relative(score, steps.group, preset.task_rule(cfg), preset.task_members(steps))  # Eq. 3
    anchors = anchor_groups(rows, steps, cfg)  # Eq. 6
    step = relative(discounted, anchors, preset.anchor_rule(cfg))  # Eq. 7
    return combine(episode, step, cfg.omega, anchors, cfg.episode_weight)  # Eq. 8
