"""Group-Graph Policy Optimization (G2PO, arXiv 2606.22995)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gigpo_mega.algorithms.primitives import (
    anchor_groups,
    combine,
    float64_preset,
    means,
    relative,
    returns,
    step_columns,
)
from gigpo_mega.algorithms.transitions import Neighbors
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, RowTable

# Constants of the official code, whatever its configuration says.
OFFICIAL_GAMMA = 0.95
OFFICIAL_SUCCESS = 10.0
OFFICIAL_PENALTY = 0.1


def g2po(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """A step is worth the value of the state that it leads to, which all visits of the state agree on.

        V(s) = mean gamma^(T - t) R          over the visits of s, at step t of T, in the task
        V(end) = R                           of the episode
        A_local = z_s(V(s') - p)             over the steps taken in s; p: the penalty of an invalid action
        A_global = z_task(V(s') - V(s))      over all steps of the task
        A = A_E + omega (A_local + A_global)

    R is the episode's score without penalties and s' the state of its next step; z subtracts the mean and
    divides by F_norm. A_E is GiGPO's (Eq. 3), penalties included. A step alone in its state has A_local = 0.
    `preset` reference: Nala-YN/G2PO, g2po/core_g2po.py at b8ffaf5, where V(end) is 10 if R is exactly 10 and
    0 otherwise, p is 0.1 whatever `invalid_penalty` is, and gamma 0.95 whatever `gamma` is.
    """
    preset = float64_preset(cfg)
    steps = step_columns(rows, replace(cfg, backend="numpy"))
    score, _ = returns(steps, 1.0, preset)
    outcome, _ = returns(replace(steps, penalty=np.zeros_like(steps.penalty)), 1.0, preset)
    end, penalty, gamma = outcome, steps.penalty, cfg.gamma
    if cfg.preset == "reference":
        end = np.where(outcome == OFFICIAL_SUCCESS, OFFICIAL_SUCCESS, 0.0)
        penalty, gamma = np.where(rows.valid, 0.0, OFFICIAL_PENALTY), OFFICIAL_GAMMA
    episode = relative(score, steps.group, preset.task_rule(cfg), preset.task_members(steps))
    neighbors, anchors = Neighbors.of(steps), anchor_groups(rows, steps, cfg)
    value = means(gamma**neighbors.remaining * outcome, anchors)
    later = neighbors.after(value, end)
    local = relative(later - penalty, anchors, preset.anchor_rule(cfg))
    gain = relative(later - value, steps.group, preset.anchor_rule(cfg))
    return combine(episode, local + gain, cfg.omega, anchors, cfg.episode_weight)
