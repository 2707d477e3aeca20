"""Random columns of steps, and both levels of advantages by the rules of every estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from kernels.advantage import Penalty, Rule, StepColumns, relative, returns
from kernels.anchor import group_ids


@dataclass(frozen=True)
class Rules:
    """Either level's rule, and how rewards become values."""

    task: Rule
    anchor: Rule
    gamma: float = 0.95
    by_row: bool = False  # every row of a task counts once, not every trajectory
    penalty: Penalty = "reward"
    float32: bool = False


@dataclass(frozen=True, slots=True)
class AnchoredSteps(StepColumns[Any]):
    """Steps and the states in which they were taken."""

    anchor: Any  # int64 [N, 2]


PAPER = Rules(Rule(epsilon=1e-3), Rule(epsilon=1e-3))
OFFICIAL = Rules(
    Rule(keep_lone=True, float32=True), Rule(float32=True), by_row=True, penalty="row", float32=True
)
RULES = {
    "paper": PAPER,
    "mean": Rules(Rule(scale=False), Rule(scale=False), gamma=1.0),
    "rows": Rules(Rule(keep_lone=True, epsilon=1e-3), Rule(epsilon=1e-3), by_row=True, penalty="row"),
    "others": Rules(Rule(scale=False, leave_one_out=True), Rule(ddof=0)),
    "official": OFFICIAL,
}
Levels = tuple[Any, Any]
"""Advantages within the task and within the anchor group, float64 [N]."""


def levels(steps: AnchoredSteps, rules: Rules, returns: Any = returns, relative: Any = relative) -> Levels:
    """Both levels; the primitives may be replaced by those of a backend."""
    score, discounted = returns(steps, rules.gamma, penalty=rules.penalty, float32=rules.float32)
    member = None if rules.by_row else steps.step == 0
    anchors = group_ids(steps.group, steps.anchor)
    return relative(score, steps.group, rules.task, member), relative(discounted, anchors, rules.anchor)


def random_steps(rows: int, seed: int = 0, tasks: int = 3, states: int = 4) -> AnchoredSteps:
    """`rows` rows of trajectories of 1 to 9 steps, in time order; rewards of 0, 10, or a normal one."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 10, rows)
    length = length[: int(np.searchsorted(np.cumsum(length), rows)) + 1]
    length[-1] -= length.sum() - rows
    trajectory = np.repeat(np.arange(len(length)), length)
    step = np.arange(rows) - np.repeat(np.cumsum(length) - length, length)
    group = (rng.integers(0, tasks, len(length)) % rows)[trajectory]  # below N, as group numbers are
    anchor = np.stack([np.zeros(rows, dtype=np.int64), rng.integers(0, states, rows)], axis=1)
    reward = np.where(rng.random(rows) < 0.5, 10.0 * rng.integers(0, 2, rows), rng.normal(size=rows))
    penalty = 0.1 * rng.integers(0, 2, rows)
    return AnchoredSteps(reward, penalty, group, trajectory, step, anchor)


def each(steps: AnchoredSteps, change: Callable[[Any], Any]) -> AnchoredSteps:
    """`change` applied to every column."""
    return AnchoredSteps(*(change(getattr(steps, field.name)) for field in fields(steps)))


def take(steps: AnchoredSteps, index: np.ndarray[Any, Any]) -> AnchoredSteps:
    """The rows `index`, in that order."""
    return each(steps, lambda column: column[index])


def on(device: torch.device, steps: AnchoredSteps) -> AnchoredSteps:
    """The columns as tensors."""
    return each(steps, lambda column: torch.from_numpy(column).to(device))
