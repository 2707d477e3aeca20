"""Random columns of advantages, and the rules of every estimator."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch

from kernels.advantage import Columns, Rule, Rules

PAPER = Rules(Rule(epsilon=1e-3), Rule(epsilon=1e-3))
OFFICIAL = Rules(
    Rule(keep_lone=True, single=True), Rule(single=True), unit="rows", penalty="row", single=True
)
RULES = {
    "paper": PAPER,
    "mean": Rules(Rule(scale=False), Rule(scale=False), gamma=1.0, omega=0.5),
    "rows": Rules(Rule(keep_lone=True, epsilon=1e-3), Rule(epsilon=1e-3), unit="rows", penalty="row"),
    "others": Rules(Rule(scale=False, leave_one_out=True), omega=0.0),
    "official": OFFICIAL,
}


def random_columns(rows: int, seed: int = 0, tasks: int = 3, states: int = 4) -> Columns[Any]:
    """`rows` rows of trajectories of 1 to 9 steps, in time order; rewards of 0, 10, or a normal one."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 10, rows)
    length = length[: int(np.searchsorted(np.cumsum(length), rows)) + 1]
    length[-1] -= length.sum() - rows
    trajectory = np.repeat(np.arange(len(length)), length)
    step = np.arange(rows) - np.repeat(np.cumsum(length) - length, length)
    group = rng.integers(0, tasks, len(length))[trajectory]
    _, step_group = np.unique(group * states + rng.integers(0, states, rows), return_inverse=True)
    reward = np.where(rng.random(rows) < 0.5, 10.0 * rng.integers(0, 2, rows), rng.normal(size=rows))
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 5, rows))])
    penalty = 0.1 * rng.integers(0, 2, rows)
    return Columns(reward, penalty, group, trajectory, step, step_group, offsets)


def take(columns: Columns[Any], index: np.ndarray[Any, Any]) -> Columns[Any]:
    """The rows `index`, in that order; without tokens."""
    present = {f.name: getattr(columns, f.name) for f in fields(Columns) if f.name != "token_offsets"}
    taken: dict[str, Any] = {name: c[index] for name, c in present.items() if c is not None}
    return Columns(**taken)


def on(device: torch.device, columns: Columns[Any]) -> Columns[torch.Tensor]:
    """The columns as tensors."""
    present = {f.name: getattr(columns, f.name) for f in fields(Columns)}
    tensors: dict[str, Any] = {n: torch.from_numpy(c).to(device) for n, c in present.items() if c is not None}
    return Columns(**tensors)
