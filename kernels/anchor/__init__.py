"""Anchor states: 128-bit keys of token ids or bytes, and the groups of equal keys (GiGPO's Eq. 6).

Two of a billion random keys agree by chance with probability 1.5e-21; `verify` makes groups exact.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kernels.anchor import reference
from kernels.anchor.digest import digest, hash_bytes
from kernels.arrays import Array, Backend, check_column, from_numpy, to_numpy, uses_triton

__all__ = ["digest", "group_ids", "hash_bytes", "hash_tokens"]

Equal = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]


def hash_tokens(tokens: Array, offsets: Array, *, backend: Backend = "auto") -> Array:
    """128-bit keys int64 [R, 2] (bits of uint64) of R segments of token ids.

    `tokens` int32 [N], not negative; segment r is `tokens[offsets[r]:offsets[r + 1]]`, `offsets` int64
    [R + 1] ascending (on a GPU that is not checked). Each of two lanes adds up, over pairs of tokens, the
    folded 64 x 64 -> 128 bit product of the pair and a key of its place, then mixes in the length: integer
    sums, the same bits from every backend and however the work is split.
    """
    check_column("tokens", tokens, "int32", (len(tokens),))
    check_column("offsets", offsets, "int64", (max(len(offsets), 1),))
    if uses_triton(tokens, backend):
        from kernels.anchor import triton

        return cast(Any, triton).hash_tokens(tokens, offsets)
    bounds = to_numpy(offsets)
    if bounds[0] < 0 or bounds[-1] > len(tokens) or (np.diff(bounds) < 0).any():
        raise ValueError(f"offsets must ascend within 0..{len(tokens)}, the number of tokens")
    return from_numpy(reference.hash_tokens(to_numpy(tokens), bounds), tokens)


def group_ids(
    task: Array,
    keys: Array,
    verify: Equal | Sequence[Hashable] | None = None,
    *,
    backend: Backend = "auto",
) -> Array:
    """Number the distinct pairs (`task`, `keys`) in order of first appearance: int64 [R] from 0.

    `task` int64 [R] is the task group of a row, `keys` int64 or uint64 [R, 2] its 128-bit key. The whole key
    decides, never a hash bucket, and the same rows always give the same ids. `verify` makes the groups exact
    whatever the keys: canonical states of the R rows, compared by ==, or a function of two equally long
    numpy arrays of rows that says which pairs have the same state; each row is compared with the first of its
    group, on the host.
    """
    check_column("task", task, "int64", (len(task),))
    check_column("keys", keys, "uint64" if "uint64" in str(keys.dtype) else "int64", (len(task), 2))
    if uses_triton(task, backend):
        from kernels.anchor import triton

        ids: Array = cast(Any, triton).group_ids(task, keys)
    else:
        ids = from_numpy(reference.group_ids(to_numpy(task), to_numpy(keys)), task)
    if verify is None:
        return ids
    equal = verify if callable(verify) else _equality(verify, len(task))
    return from_numpy(reference.split_unequal(to_numpy(ids), equal), task)


def _equality(states: Sequence[Hashable], rows: int) -> Equal:
    if len(states) != rows:
        raise ValueError(f"verify must hold a state for each of {rows} rows, got {len(states)}")

    def equal(ours: NDArray[np.int64], leaders: NDArray[np.int64]) -> NDArray[np.bool_]:
        pairs = zip(ours.tolist(), leaders.tolist(), strict=True)
        return np.array([states[row] == states[leader] for row, leader in pairs], dtype=np.bool_)

    return equal
