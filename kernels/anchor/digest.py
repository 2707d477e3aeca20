"""128-bit keys of states that are bytes."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

DIGEST_SIZE = 16  # bytes


def digest(state: bytes, key: bytes = b"") -> bytes:
    """The 16-byte key of `state`: XXH3-128, or with a `key` of at most 64 bytes keyed BLAKE2b-128.

    BLAKE2b for text that may be written to collide; XXH3 takes a tenth of its time and withstands nobody.
    """
    return blake2b(state, digest_size=DIGEST_SIZE, key=key).digest() if key else xxh3_128_digest(state)


def hash_bytes(states: Iterable[bytes], key: bytes = b"") -> NDArray[np.int64]:
    """The digests of R `states` as columns [R, 2] (high half first), the form of `hash_tokens`."""
    joined = b"".join(digest(state, key) for state in states)
    return np.frombuffer(joined, dtype=">i8").astype(np.int64).reshape(-1, 2)
