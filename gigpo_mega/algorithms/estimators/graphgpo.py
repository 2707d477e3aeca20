"""Graph-based Group Policy Optimization (GraphGPO, arXiv 2605.26684, ICML 2026)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gigpo_mega.algorithms.primitives import combine, float64_preset, relative, returns, step_columns
from gigpo_mega.algorithms.transitions import Neighbors, distances, state_ids
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, RowTable
from kernels.anchor import group_ids


def graphgpo(rows: RowTable, cfg: AdvantageConfig) -> Advantages:
    """A step is worth more the closer it leads to the goal, in the graph of all steps of the task.

        d(s) = fewest steps from s to a success           in any of the task's episodes
        R_G = r gamma^(d(s') + 1) - p                     r: `goal_reward`
        A_G = (R_G - mean R_G) / F_norm                   over the steps taken in s
        A = episode_weight A_E + omega A_G

    p is the penalty of an invalid action. The successful step leads to the goal, where d = 0. States without
    a way there are one step further off than the farthest that has one. With `distance` relative the exponent
    is d(s') + 1 - d(s). A_E is GiGPO's (Eq. 3). A step alone in its state has A_G = 0. `preset` reference:
    langfengQ/verl-agent, recipe/GraphGPO/core_graph.py at 234a913, where the exponent is d(s'), an episode
    succeeds if its score is positive, and `similarity` merges the states of the graph but not those that are
    compared.
    """
    preset, official = float64_preset(cfg), cfg.preset == "reference"
    steps = step_columns(rows, replace(cfg, backend="numpy"))
    score, _ = returns(steps, 1.0, preset)
    episode = relative(score, steps.group, preset.task_rule(cfg), preset.task_members(steps))
    before, after = state_ids(rows, steps, cfg)
    goal = int(max(before.max(initial=-1), after.max(initial=-1))) + 1
    won = np.array([step.success for step in rows.steps], dtype=np.bool_)
    if official:
        outcome, _ = returns(replace(steps, penalty=np.zeros_like(steps.penalty)), 1.0, preset)
        won = outcome > 0
    won &= Neighbors.of(steps).last  # an environment may say so of a step in between, too
    after = np.where(won, goal, after)
    distance = distances(before, after, steps.group, goal)
    hops = distance[after] + 1
    if cfg.distance == "relative":
        hops -= distance[before]
    elif official:
        hops -= 1
    value = cfg.goal_reward * cfg.gamma**hops - steps.penalty
    states = rows.anchor.view(np.int64) if official else np.stack([before, before], axis=1)
    anchors = group_ids(steps.group, states)
    step = relative(value, anchors, preset.anchor_rule(cfg))
    return combine(episode, step, cfg.omega, anchors, cfg.episode_weight)
