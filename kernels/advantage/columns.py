"""Columns of equal length that advantages are computed from, in numpy arrays or tensors.

Shape letter: N rows (one row = one step = one model call). Floating-point columns are float64, the others
int64; tensors are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal

from kernels.arrays import Array

Penalty = Literal["reward", "row"]


@dataclass(frozen=True, slots=True)
class StepColumns(Generic[Array]):
    """Steps of complete trajectories, in any order; a trajectory has the steps 0, 1, 2, ... exactly once."""

    reward: Array  # [N]
    penalty: Array  # [N] subtracted for an invalid action
    group: Array  # [N] task group, 0..N-1
    trajectory: Array  # [N] unique over all groups, >= 0
    step: Array  # [N]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a value is compared with those of its group: the baseline subtracted and F_norm."""

    scale: bool = True  # F_norm is the standard deviation plus epsilon; False: 1
    epsilon: float = 1e-6
    ddof: int = 1  # the variance divides by members - ddof
    leave_one_out: bool = False  # the baseline is the mean of the OTHER members
    keep_lone: bool = False  # a group of one keeps its value instead of getting 0
    float32: bool = False  # mean and standard deviation are rounded to float32
