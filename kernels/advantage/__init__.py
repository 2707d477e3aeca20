"""Hierarchical advantages (GiGPO, arXiv 2505.10978): an episode level, a step level, and their sum."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from kernels.advantage import reference
from kernels.advantage.columns import Columns, Levels, Rule, Rules
from kernels.arrays import Array, Backend, check_column, from_numpy, to_numpy, uses_triton

__all__ = ["Columns", "Levels", "Rule", "Rules", "hierarchical_advantage"]


def hierarchical_advantage(
    columns: Columns[Array], rules: Rules, *, backend: Backend = "auto"
) -> Levels[Array]:
    """`A = A_E + omega A_S` of N rows and, where their offsets are given, of T tokens (Eq. 3 to 8).

    `A_E` compares the scores of a task group's trajectories, `A_S` the discounted returns of an anchor
    group's steps, each by its `Rule`; float64 inside, the same bits from either backend, in any order of the
    rows, and however task groups are sharded. Scores and returns up to 1e150.

    On a GPU values are not checked: `group` must be below 2^21, `trajectory` 2^22, `step` 2^20. On the host
    ValueError names a trajectory whose steps are not 0, 1, 2, ... exactly once.
    """
    rows = len(columns.reward)
    shapes: dict[str, tuple[str, int]] = {"reward": ("float64", rows), "penalty": ("float64", rows)}
    shapes["token_offsets"] = ("int64", rows + 1)
    present = {f.name: getattr(columns, f.name) for f in fields(Columns)}
    present = {name: column for name, column in present.items() if column is not None}
    for name, column in present.items():
        dtype, length = shapes.get(name, ("int64", rows))
        check_column(name, column, dtype, (length,))
    if uses_triton(columns.reward, backend):
        from kernels.advantage import triton

        return cast(Any, triton).hierarchical_advantage(columns, rules)
    on_host: dict[str, Any] = {name: to_numpy(column) for name, column in present.items()}
    found = reference.hierarchical_advantage(Columns(**on_host), rules)
    total, episode, step = (from_numpy(c, columns.reward) for c in (found.total, found.episode, found.step))
    token = None if found.token is None else from_numpy(found.token, columns.reward)
    return Levels(total, episode, step, token)
