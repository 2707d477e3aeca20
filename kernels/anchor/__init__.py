"""Anchor states: 128-bit keys of token ids or bytes, and the groups of equal keys (GiGPO's Eq. 6).

The chance of any collision among 1e9 random 128-bit keys is 1.5e-21. Derivation: kernels/README.md.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from kernels.anchor import reference
from kernels.anchor.digest import digest
from kernels.arrays import Array, check_column, uses_triton

__all__ = ["digest", "group_ids", "hash_tokens"]


def hash_tokens(tokens: Array, offsets: Array) -> Array:
    """128-bit keys int64 [R, 2] (bits of uint64) of R segments of token ids.

    `tokens` int32 [N], not negative; segment r is `tokens[offsets[r]:offsets[r + 1]]`, `offsets` int64
    [R + 1] ascending (on a GPU that is not checked). Each of two lanes adds up, over pairs of tokens, the
    folded 64 x 64 -> 128 bit product of the pair and a key of its position, then mixes in the length: integer
    sums, the same bits from numpy and Triton and however the work is split.
    """
    check_column("tokens", tokens, "int32", (len(tokens),))
    check_column("offsets", offsets, "int64", (max(len(offsets), 1),))
    if uses_triton(tokens):
        from kernels.anchor import triton

        return cast(Any, triton).hash_tokens(tokens, offsets)
    bounds = cast(Any, offsets)
    if bounds[0] < 0 or bounds[-1] > len(tokens) or (np.diff(bounds) < 0).any():
        raise ValueError(f"offsets must ascend within 0..{len(tokens)}, the number of tokens")
    return cast(Any, reference).hash_tokens(tokens, bounds)


def group_ids(task: Array, keys: Array) -> Array:
    """Number the distinct pairs (`task`, `keys`) in order of first appearance: int64 [R] from 0.

    `task` int64 [R] is the task group of a row, `keys` int64 or uint64 [R, 2] its 128-bit key. The whole key
    decides, never a hash bucket, and the same rows always give the same ids.
    """
    check_column("task", task, "int64", (len(task),))
    check_column("keys", keys, "uint64" if "uint64" in str(keys.dtype) else "int64", (len(task), 2))
    if uses_triton(task):
        from kernels.anchor import triton

        return cast(Any, triton).group_ids(task, keys)
    return cast(Any, reference).group_ids(task, keys)
