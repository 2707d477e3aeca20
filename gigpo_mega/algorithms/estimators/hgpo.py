"""Hierarchy-of-Groups Policy Optimization (HGPO, arXiv 2602.22817, ICLR 2026)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gigpo_mega.algorithms.primitives import (
    anchor_groups,
    combine,
    float64_preset,
    relative,
    returns,
    step_columns,
)
from gigpo_mega.algorithms.transitions import history_groups
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, RowTable


def hgpo(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """A step is compared with those of the same state, and with those that came there the same way.

        G_k = steps of the task whose last k states, their own included, agree        k = 1 .. K + 1
        A_k = (R_t - mean R_t) / F_norm                over G_k, of at least two steps
        A = sum_k w_k A_k / sum_k w_k                  w_k = k^alpha

    K is `history_length`; step t is in G_k for k <= t + 1. F_norm is the standard deviation of the group (its
    variance divides by the number of steps) plus epsilon, or 1. A step alone in every group has A = 0; there
    is no episode level. `preset` reference: langfengQ/verl-agent, recipe/hgpo/core_hgpo.py at 796ed31, where
    w_k = (k + 1)^alpha and levels with A_k = 0 have no weight.
    """
    preset, official = float64_preset(cfg), cfg.preset == "reference"
    steps = step_columns(rows, replace(cfg, backend="numpy"))
    _, discounted = returns(steps, cfg.gamma, preset)
    anchors = anchor_groups(rows, steps, cfg)
    rule = replace(preset.anchor_rule(cfg), ddof=0)
    total, weights = np.zeros((2, len(rows)))
    for k, (group, counts) in enumerate(history_groups(steps, anchors, cfg.history_length), start=1):
        advantage = relative(discounted, group, rule)
        if official:
            counts &= advantage != 0
        weight = (k + official) ** cfg.history_alpha * counts
        total += weight * advantage
        weights += weight
    step = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
    return combine(np.zeros_like(step), step, 1.0, anchors)
