"""Generalized Advantage Grouped Policy Optimization (GAGPO, arXiv 2605.13217)."""

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


def gagpo(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """Generalized advantages whose critic is the mean return of a state's visits.

        V(s) = mean R_t                                   over the visits of s in the task; V(end) = 0
        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
        A'_t = delta_t + gamma lambda A'_{t+1}
        A = (A' - mean A') / F_norm                       over all steps of the task

    There is no episode level. If s_t and s_{t+1} were visited once each, delta_t = 0. There is no official
    code: this is our own definition, after notes on the paper.
    """
    preset = float64_preset(cfg)
    steps = step_columns(rows, replace(cfg, backend="numpy"))
    _, discounted = returns(steps, cfg.gamma, preset)
    anchors = anchor_groups(rows, steps, cfg)
    value = means(discounted, anchors)
    delta = steps.reward - steps.penalty + cfg.gamma * Neighbors.of(steps).after(value, 0.0) - value
    errors = replace(steps, reward=delta, penalty=np.zeros_like(delta))
    _, advantage = returns(errors, cfg.gamma * cfg.gae_lambda, preset)  # their discounted sum
    step = relative(advantage, steps.group, preset.anchor_rule(cfg))
    return combine(np.zeros_like(step), step, 1.0, anchors)
