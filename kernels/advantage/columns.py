"""What goes into the advantages and what comes out: columns of equal length, numpy or torch.

Shape letters: N rows (one row = one step = one model call), T tokens of all rows. Floating-point columns are
float64, integers int64, unless said otherwise; on a GPU they are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal

from kernels.arrays import Array


@dataclass(frozen=True, slots=True)
class Columns(Generic[Array]):
    """The steps of complete groups, in any order; a trajectory's steps are 0, 1, 2, ... exactly once."""

    reward: Array  # [N]
    penalty: Array  # [N] taken from the row's reward, before or after discounting
    group: Array  # [N] task group of the row
    trajectory: Array  # [N] unique over all groups
    step: Array  # [N]
    step_group: Array | None = None  # [N] anchor group, 0..N-1; without it there is no step level
    token_offsets: Array | None = None  # [N + 1] where the tokens of every row begin; the last is T


@dataclass(frozen=True, slots=True)
class Rule:
    """How the value of a row is compared with those of its group."""

    scale: bool = True  # divide by the standard deviation plus epsilon
    epsilon: float = 1e-6
    ddof: int = 1  # the variance divides by members - ddof
    leave_one_out: bool = False  # the baseline is the mean of the OTHER members
    keep_lone: bool = False  # a group of one keeps its value instead of getting 0
    single: bool = False  # mean and deviation are rounded to float32


@dataclass(frozen=True, slots=True)
class Rules:
    """An estimator: the rule of either level, and how rewards become values."""

    episode: Rule = Rule()
    step: Rule = Rule()
    gamma: float = 0.95  # discount of the returns
    omega: float = 1.0  # weight of the step level
    unit: Literal["trajectories", "rows"] = "trajectories"  # what counts once in an episode group
    penalty: Literal["reward", "row"] = "reward"  # part of the reward, or taken from one row's values
    single: bool = False  # scores and returns are rounded to float32


@dataclass(frozen=True, slots=True)
class Levels(Generic[Array]):
    """The advantages: `total = episode + omega * step`."""

    total: Array  # [N] float32
    episode: Array  # [N] float32
    step: Array  # [N] float32; zeros without a step level
    token: Array | None  # [T] float32, the total of the token's row; None without token offsets
