"""Hashing and grouping of anchor states in numpy, on one core."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

# Odd constants without a pattern, as in SplitMix64 and wyhash. Both halves of a WORD_KEY have their top bit
# set, so no pair of token ids equals one, and no product is 0.
WORD_KEYS = (0x9E3779B9FF4A7C15, 0xE7037ED1A0B428DB)
PLACE_FACTORS = (0xBF58476D1CE4E5B9, 0x8EBC6AF09C88C6E3)
PLACE_KEYS = (0xA0761D6478BD642F, 0x589965CC75374CC3)
LENGTH_FACTORS = (0x94D049BB133111EB, 0xC2B2AE3D27D4EB4F)
FINAL_FACTOR = 0xD6E8FEB86659FD93
CODE_FACTORS = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9)
CHUNK = 1 << 15  # pairs of tokens at a time: intermediate columns stay in the cache


def hash_tokens(tokens: Int32, offsets: Int64) -> Int64:
    """128-bit keys [R, 2] of token segments, see the package."""
    pairs = (np.diff(offsets) + 1) // 2
    ends = np.cumsum(pairs)
    sums = np.zeros((2, len(pairs)), dtype=np.uint64)
    for begin in range(0, int(pairs.sum()), CHUNK):
        pair = np.arange(begin, min(begin + CHUNK, int(ends[-1])))
        segment = np.searchsorted(ends, pair, side="right")
        place = pair - ends[segment] + pairs[segment]
        first = offsets[segment] + 2 * place
        second = np.where(first + 1 < offsets[segment + 1], tokens[np.minimum(first + 1, len(tokens) - 1)], 0)
        word = _unsigned(tokens[first]) | _unsigned(second) << np.uint64(32)
        for lane, total in enumerate(sums):
            key = (place + 1).astype(np.uint64) * np.uint64(PLACE_FACTORS[lane]) + np.uint64(PLACE_KEYS[lane])
            np.add.at(total, segment, _fold(word ^ np.uint64(WORD_KEYS[lane]), key))
    lengths = np.diff(offsets).astype(np.uint64)
    lanes = [_final(s + lengths * np.uint64(f)) for s, f in zip(sums, LENGTH_FACTORS, strict=True)]
    return np.stack(lanes, axis=1).view(np.int64)


def _unsigned(tokens: Int32) -> UInt64:
    return tokens.astype(np.uint32).astype(np.uint64)


def _fold(a: UInt64, b: UInt64) -> UInt64:
    """The two halves of the 128-bit product, xored."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    return (a1 * b1 + (middle >> half) + (other >> half)) ^ (a * b)


def _final(x: UInt64) -> UInt64:
    """Mix `x` one to one, so that every bit of the result depends on every bit of it."""
    for _ in range(2):
        x = (x ^ (x >> np.uint64(32))) * np.uint64(FINAL_FACTOR)
    return x ^ (x >> np.uint64(32))


def group_ids(task: Int64, keys: Int64) -> Int64:
    """The distinct pairs (`task` [N], `keys` [N, 2]) numbered in order of first appearance, [N] from 0.

    Sorts one 64-bit word per row: the row's number in the low bits, as many bits of a code of task and key as
    fit above it. The whole key decides: if two keys share a code, as in one batch of hundreds, all columns
    are sorted.
    """
    columns = (task.view(np.uint64), keys[:, 0].astype(np.uint64), keys[:, 1].astype(np.uint64))
    bits = np.uint64(max(len(task) - 1, 1).bit_length())
    word = (_code(*columns) >> bits << bits) | np.arange(len(task), dtype=np.uint64)
    word.sort()
    order = (word & ((np.uint64(1) << bits) - np.uint64(1))).view(np.int64)
    starts = _changes(columns, order)
    if (starts[1:] & (word[1:] >> bits == word[:-1] >> bits)).any():
        order = np.lexsort(columns)
        starts = _changes(columns, order)
    first = order[starts]  # the earliest row of each group: rows of one code stay in their order
    appears = np.zeros(len(order), dtype=np.int64)
    appears[first] = 1
    ids = np.empty_like(appears)
    ids[order] = (np.cumsum(appears) - 1)[first][np.cumsum(starts) - 1]
    return ids


def _code(task: UInt64, high: UInt64, low: UInt64) -> UInt64:
    of_task, of_high, of_key = (np.uint64(factor) for factor in CODE_FACTORS)
    return (high * of_high + low) * of_key + task * of_task


def _changes(columns: tuple[UInt64, ...], order: Int64) -> Bool:
    """Whether each sorted row differs from the one before it."""
    changes = np.zeros(len(order), dtype=np.bool_)
    changes[:1] = True
    for column in columns:
        ranked = column[order]
        changes[1:] |= ranked[1:] != ranked[:-1]
    return changes
