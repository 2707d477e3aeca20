"""Whether difflib finds two texts similar: exactly its answer, in a small part of its time.

`SequenceMatcher(None, a, b).ratio()` is 2 M / (len(a) + len(b)). M adds up blocks: the longest common one,
then the longest left and right of it, and so on. With autojunk, a block starts from characters that make up
at most 1% of b (if b has 200 or more; else from any) or at the beginning of what is left, and grows over all
others. So all diagonal runs of such rare characters are found at once. M lies between what has matched so far
and that plus what could still match, which decides most comparisons after the first block.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gigpo_mega.types import Bool, Int64

_BUCKETS = 256
_MANY = 10_000_000  # pairs of equal characters, 80 MB in each column
_Bounds = tuple[int, int, int, int]  # begin and end in the text, begin and end in the reference


@dataclass(frozen=True, slots=True)
class Text:
    """A text to compare, or one that others are compared with."""

    text: str
    codes: NDArray[np.uint32]  # [T]
    counts: Int64  # [256] of characters; those whose codes differ by 256 share a count
    known: NDArray[np.uint32]  # [K] codes that occur, ascending
    often: Int64  # [K] how often each does
    rare: Bool  # [K] whether a block may start there if the text is a reference
    places: Int64  # [T] of all characters, by code, then ascending
    first: Int64  # [K] index in `places` of each code's first place

    @classmethod
    def of(cls, text: str) -> Self:
        """Prepare `text` once for all comparisons."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        places = np.argsort(codes, kind="stable")
        known, first, often = np.unique(codes[places], return_index=True, return_counts=True)
        rare = often <= len(text) // 100 + 1 if len(text) >= 200 else often > 0  # difflib's autojunk
        counts = np.bincount(codes % _BUCKETS, minlength=_BUCKETS)
        return cls(text, codes, counts, known, often, rare, places, first)


class Clusters:
    """The clusters of one task group; each is represented by its first member."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._ids: list[int] = []
        self._references: list[Text] = []
        self._counts = np.zeros((0, _BUCKETS), dtype=np.int64)

    def join(self, text: str, new: int) -> int:
        """The id of the first cluster whose first member `text` resembles, or of a new one, called `new`."""
        own = Text.of(text)
        # No more characters can match than both have, whatever their order.
        common = np.minimum(self._counts, own.counts).sum(axis=1).tolist()
        for most, reference, cluster in zip(common, self._references, self._ids, strict=True):
            required = least_matches(len(text) + len(reference.text), self._threshold)
            if most >= required and is_similar(own, reference, required, self._threshold):
                return cluster
        self._ids.append(new)
        self._references.append(own)
        self._counts = np.concatenate([self._counts, own.counts[None]])
        return new


def least_matches(length: int, threshold: float) -> int:
    """The smallest M with `2.0 * M / length >= threshold`, as floating-point numbers compare."""
    matches = int(threshold * length / 2)
    while matches > 0 and 2.0 * (matches - 1) / length >= threshold:
        matches -= 1
    while length and 2.0 * matches / length < threshold:
        matches += 1
    return matches


def is_similar(text: Text, reference: Text, required: int, threshold: float) -> bool:
    """Exactly `SequenceMatcher(None, text, reference).ratio() >= threshold`, i.e. M >= `required`."""
    runs = _Runs.of(text, reference)
    if runs is None:
        return SequenceMatcher(None, text.text, reference.text).ratio() >= threshold
    matched, possible = 0, min(len(text.text), len(reference.text))
    left: list[_Bounds] = [(0, len(text.text), 0, len(reference.text))]
    while left and matched < required <= possible:
        begin, end, other, other_end = bounds = left.pop()
        possible -= min(end - begin, other_end - other)
        i, j, size = runs.longest_block(bounds)
        if size == 0:
            continue
        matched += size
        possible += size
        for part in ((begin, i, other, j), (i + size, end, j + size, other_end)):
            if (rest := min(part[1] - part[0], part[3] - part[2])) > 0:
                possible += rest
                left.append(part)
    return matched >= required


@dataclass(frozen=True, slots=True)
class _Runs:
    """The longest diagonal runs of equal rare characters of two texts, in the order of their ends."""

    text: NDArray[np.uint32]
    reference: NDArray[np.uint32]
    begin: Int64  # [R] in the text
    other: Int64  # [R] begin in the reference
    size: Int64  # [R]

    @classmethod
    def of(cls, text: Text, reference: Text) -> Self | None:
        """All runs; None if there are too many equal characters."""
        _, mine, its = np.intersect1d(text.known, reference.known, assume_unique=True, return_indices=True)
        starts_blocks = np.zeros(len(text.known), dtype=np.bool_)
        starts_blocks[mine] = reference.rare[its]
        code = np.zeros(len(text.known), dtype=np.int64)
        code[mine] = its
        at = text.places[np.repeat(starts_blocks, text.often)]
        code = np.repeat(code[starts_blocks], text.often[starts_blocks])
        often = reference.often[code]
        if (total := int(often.sum())) > _MANY:
            return None
        within = np.arange(total) - np.repeat(np.cumsum(often) - often, often)
        i = np.repeat(at, often)
        j = reference.places[np.repeat(reference.first[code], often) + within]
        width = len(text.codes) + len(reference.codes) + 1
        diagonal = np.sort((j - i + len(text.codes)) * width + i)  # neighbors on a diagonal differ by 1
        starts = np.flatnonzero(np.diff(diagonal, prepend=-2) != 1)
        size = np.diff(starts, append=total)
        shift, begin = np.divmod(diagonal[starts], width)
        return cls(text.codes, reference.codes, begin, begin + shift - len(text.codes), size)

    def longest_block(self, bounds: _Bounds) -> tuple[int, int, int]:
        """`SequenceMatcher.find_longest_match`: begin in the text, begin in the reference, and size."""
        begin, end, other, other_end = bounds
        i, j, size = begin, other, 0
        if len(self.size):
            skipped = np.maximum(np.maximum(begin - self.begin, other - self.other), 0)
            kept = np.minimum(np.minimum(end - self.begin, other_end - self.other), self.size) - skipped
            if (longest := int(kept.max())) > 0:
                # Of equally long ones the one that ends first, in the text, then in the reference.
                best = np.flatnonzero(kept == longest)
                starts, others = (column[best] + skipped[best] for column in (self.begin, self.other))
                first = np.lexsort((others, starts))[0]
                i, j, size = int(starts[first]), int(others[first]), longest
        back = _common(self.text[begin:i][::-1], self.reference[other:j][::-1])
        i, j, size = i - back, j - back, size + back
        return i, j, size + _common(self.text[i + size : end], self.reference[j + size : other_end])


def _common(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    """How many characters are equal at the beginning of both."""
    length = min(len(one), len(other))
    if length == 0:
        return 0
    different = one[:length] != other[:length]
    first = int(different.argmax())
    return first if different[first] else length
