"""Discounted returns, and values relative to their group: what group-relative advantages are made of.

Numpy arrays are computed on the host (`reference`), CUDA tensors in Triton. Both use float64 and give the
same bits, in any order of the rows and however groups are sharded. Rewards and values may be as large as
1e150. Derivation: kernels/README.md.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from kernels.advantage import reference
from kernels.advantage.columns import Penalty, Rule, StepColumns
from kernels.arrays import Array, check_column, uses_triton

__all__ = ["Penalty", "Rule", "StepColumns", "relative", "returns"]


def returns(
    steps: StepColumns[Array], gamma: float, *, penalty: Penalty = "reward", float32: bool = False
) -> tuple[Array, Array]:
    """The score `R(tau) = sum_t r_t` of each row's trajectory and its return `R_t = r_t + gamma R_{t+1}`.

    Two float64 columns [N]. With `penalty` "reward" the penalty is part of r_t; with "row" it is subtracted
    from the score and the return of its own row only. `float32` rounds both to float32. Raises ValueError
    naming a trajectory whose steps are not 0, 1, 2, ... exactly once. On a GPU `step` must be below 2^20 and
    `trajectory` below 2^43. Source: GiGPO (arXiv 2505.10978), Eq. 5.
    """
    rows = len(steps.reward)
    for field in fields(StepColumns):
        dtype = "float64" if field.name in ("reward", "penalty") else "int64"
        check_column(field.name, getattr(steps, field.name), dtype, (rows,))
    if uses_triton(steps.reward):
        from kernels.advantage import triton

        return cast(Any, triton).returns(steps, gamma, penalty, float32)
    return cast(Any, reference).returns(steps, gamma, penalty, float32)


def relative(values: Array, group: Array, rule: Rule, member: Array | None = None) -> Array:
    """`(value - mean) / F_norm` within each group, float64 [N].

    `values` float64 [N], `group` int64 [N] of 0..N-1 (on a GPU that is not checked); mean and F_norm are
    taken over the rows for which `member` bool [N] holds, by default all. Source: GiGPO (arXiv 2505.10978),
    Eq. 3 and 7.
    """
    rows = len(values)
    check_column("values", values, "float64", (rows,))
    check_column("group", group, "int64", (rows,))
    if member is not None:
        check_column("member", member, "bool", (rows,))
    if uses_triton(values):
        from kernels.advantage import triton

        return cast(Any, triton).relative(values, group, rule, member)
    return cast(Any, reference).relative(values, group, rule, member)
