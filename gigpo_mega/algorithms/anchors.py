"""Keys of anchor states, and step-level groups by text similarity (equal keys: `kernels.anchor`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from gigpo_mega.algorithms.similarity import Clusters
from gigpo_mega.types import Int64
from kernels.anchor import digest


@lru_cache(maxsize=4096)
def _key(salt: str) -> bytes:
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def anchor_key(state: str, salt: str) -> bytes:
    """The 16-byte key of an anchor state, scoped by `salt`, the id of its task group.

    Keyed BLAKE2b-128 of the exact text: nothing is stripped, folded or normalized. A cryptographic hash,
    because the text comes from the environment and may be adversarial. Raises TypeError for a state that is
    not text, because 1, True and 1.0 are equal in Python and would share a group.
    """
    if not isinstance(state, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise TypeError(f"anchor state must be text, got {type(state).__name__}: encode it canonically")
    return digest(state.encode("utf-8", "surrogatepass"), key=_key(salt))


def similar_groups(texts: Sequence[str], group: Int64, threshold: float) -> Int64:
    """Cluster rows of one task group whose texts are similar, ids [N] in order of first appearance.

    A row joins the first cluster, in order of creation, whose FIRST member `rep` satisfies
    `SequenceMatcher(None, text, rep).ratio() >= threshold`, difflib's autojunk included (verl-agent's
    `build_step_group`); otherwise it starts one. The result depends on the order of the rows.
    """
    ids = np.empty(len(texts), dtype=np.int64)
    tasks: dict[int, Clusters] = {}
    known: dict[tuple[int, str], int] = {}  # equal texts walk the same clusters, so they end in the same one
    count = 0
    for row, (task, text) in enumerate(zip(group.tolist(), texts, strict=True)):
        if (task, text) not in known:
            found = tasks.setdefault(task, Clusters(threshold)).join(text, count)
            known[task, text] = found
            count = max(count, found + 1)
        ids[row] = known[task, text]
    return ids
