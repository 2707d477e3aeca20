"""128-bit keys of states that are bytes."""

from __future__ import annotations

from hashlib import blake2b

from xxhash import xxh3_128_digest

DIGEST_SIZE = 16  # bytes


def digest(state: bytes, key: bytes = b"") -> bytes:
    """The 16-byte key of `state`: XXH3-128, or with a `key` of at most 64 bytes keyed BLAKE2b-128.

    Text that may be adversarial needs BLAKE2b; XXH3 takes a tenth of the time but is not collision-resistant.
    """
    return blake2b(state, digest_size=DIGEST_SIZE, key=key).digest() if key else xxh3_128_digest(state)
