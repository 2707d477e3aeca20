"""Rows to micro-batches: packed or padded sequences within a token budget, balanced by what they cost."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gigpo_mega.config import BatchConfig, ParallelConfig
from gigpo_mega.shape import Cost
from gigpo_mega.types import Bool, Float32, Float64, Int32, Int64


class TokenSequence(Protocol):
    """A prompt and the response that is learned; a `types.Step` is one."""

    @property
    def prompt_ids(self) -> Int32: ...  # [P]

    @property
    def response_ids(self) -> Int32: ...  # [R]


class Sequences(Protocol):
    """Sequences by row, such as a tuple of steps."""

    def __getitem__(self, row: int, /) -> TokenSequence: ...


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of a micro-batch, before it is built."""

    rows: Int64  # [q]
    weight: float  # 0 for a filler that only keeps ranks in step, else 1


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences of prompt and response: side by side in one long row (packed), or each in its own (padded).

    Shapes: b rows, s columns, m sequences that share a row's columns, q = b x m sequences. Columns
    `starts[i]` to `starts[i + 1]` belong to the i-th; what a sequence leaves over there is padding on its
    right, which a causal mask hides. Per-token arrays are flat over `mask` in row-major order ([n]), that is
    sequence by sequence.
    """

    tokens: Int64  # [b, s] prompt and response without its last token
    labels: Int64  # [b, s] the next token
    mask: Bool  # [b, s] True if the label is a response token
    starts: Int64  # [m + 1] packed: where each sequence begins; padded: [0, s]
    rows: Int64  # [q] row of the iteration's table
    lengths: Int64  # [q] response tokens of each row
    weight: float  # 0 for a filler that only keeps ranks in step, else 1

    def spread(self, values: Float32) -> Float32:
        """Per-row values [N] of the whole table -> per-token values [n]."""
        return np.repeat(values[self.rows], self.lengths)


@dataclass(frozen=True, slots=True)
class Split:
    """What a parallel layout asks of `pack`; the default is one process."""

    ranks: int = 1  # data-parallel ranks
    rank: int = 0
    sequence: int = 1  # a sequence's columns are a multiple of this (context parallelism cuts each)
    columns: int = 1  # and all columns of a micro-batch of this (sequence parallelism cuts the whole)
    count: int = 1  # a rank's micro-batches are a multiple of this (interleaved pipelines take them in turns)

    @classmethod
    def of(cls, cfg: ParallelConfig, ranks: int, rank: int) -> Split:
        """What the layout `cfg` asks of the data-parallel rank `rank` of `ranks`."""
        # A rank of a context-parallel group takes one chunk from the front of a sequence and one from its
        # back.
        sequence = 2 * cfg.context if cfg.context > 1 else 1
        columns = sequence * (cfg.tensor if cfg.sequence_parallel else 1)
        return cls(ranks, rank, sequence, columns, cfg.pipeline if cfg.virtual_pipeline > 1 else 1)


def updates(rows: Int64, cfg: BatchConfig, rng: np.random.Generator) -> Iterator[Int64]:
    """Cut `rows` [N] into the rows of each optimizer update, `cfg.epochs` times over.

    Pieces differ by at most one row, so that no update is starved.
    """
    for _ in range(cfg.epochs):
        order = rng.permutation(rows) if cfg.shuffle else rows
        pieces = max(1, round(len(order) / cfg.rows_per_update)) if cfg.rows_per_update else 1
        for piece in np.array_split(order, pieces):
            if len(piece):
                yield piece


def pack(
    sequences: Sequences, rows: Int64, cfg: BatchConfig, split: Split | None = None, cost: Cost | None = None
) -> list[MicroBatch]:
    """The micro-batches of `rows` [q] for the data-parallel rank of `split`, dealt and built."""
    split = split or Split()
    prompts = np.array([len(sequences[int(r)].prompt_ids) for r in rows], dtype=np.int64)
    dealt = deal(rows, prompts, _responses(sequences, rows), cfg, split, cost or Cost())
    return [build(sequences, share, cfg, split) for share in dealt[split.rank]]


def deal(
    rows: Int64, prompts: Int64, responses: Int64, cfg: BatchConfig, split: Split, cost: Cost
) -> list[list[Share]]:
    """The micro-batches of `rows` with so many tokens, all [q]: by data-parallel rank, the costliest first.

    None has more than `cfg.microbatch_tokens` columns (a longer row stands alone). Every rank gets the same
    number of about the same cost; what is missing are fillers of weight 0.
    """
    # A sequence's last token is only ever a label.
    plan = _Plan(_round_up(prompts + responses - 1, split.sequence), responses, split, cost)
    capacity = max(1, cfg.microbatch_tokens // split.columns) * split.columns
    groups = plan.packed(capacity) if cfg.packed else plan.padded(capacity)
    shortest = rows[np.argmin(plan.columns)]

    def share(group: Int64) -> Share:
        return Share(*((rows[group], 1.0) if len(group) else (shortest[None], 0.0)))

    return [[share(group) for group in hand] for hand in plan.deal(groups, cfg.packed)]


def build(sequences: Sequences, share: Share, cfg: BatchConfig, split: Split) -> MicroBatch:
    """The micro-batch of the `sequences` in `share`."""
    chosen = [sequences[int(row)] for row in share.rows]
    texts = [np.concatenate([sequence.prompt_ids, sequence.response_ids]) for sequence in chosen]
    columns = np.array([len(ids) - 1 for ids in texts])  # a sequence's last token is only ever a label
    if cfg.packed:  # one after the other
        starts = np.concatenate([[0], np.cumsum(_round_up(columns, split.sequence))])
        starts[-1] = _round_up(starts[-1], split.columns)
        shape, places = (1, int(starts[-1])), [(0, int(start)) for start in starts[:-1]]
    else:  # each from column 0 on
        width = int(_round_up(columns.max(), split.columns))
        starts = np.array([0, width])
        shape, places = (len(chosen), width), [(line, 0) for line in range(len(chosen))]
    tokens, labels = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.bool_)
    for sequence, ids, (line, start) in zip(chosen, texts, places, strict=True):
        end = start + len(ids) - 1
        tokens[line, start:end] = ids[:-1]
        labels[line, start:end] = ids[1:]
        mask[line, start + len(sequence.prompt_ids) - 1 : end] = True
    lengths = _responses(sequences, share.rows)
    return MicroBatch(tokens, labels, mask, starts.astype(np.int64), share.rows, lengths, share.weight)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How rows are grouped; groups are arrays of positions in them."""

    columns: Int64  # [q] with alignment
    responses: Int64  # [q]
    split: Split
    cost: Cost

    def packed(self, capacity: int) -> list[Int64]:
        """As few groups as the ranks allow, none of more than `capacity` columns."""
        together = self.split.ranks * self.split.count
        costs = self.cost.of(self.columns, self.responses)
        # No two of the rows that take more than half of a group share one.
        least = max(-(-int(self.columns.sum()) // capacity), int((2 * self.columns > capacity).sum()))
        bins, tries = -(-least // together), 0
        too_few, step = bins - 1, max(1, bins // 100)  # of many groups, one in a hundred may be too many
        while (groups := _balance(costs, self.columns, bins * together, capacity)) is None:
            too_few, bins, tries = bins, bins + (step << tries), tries + 1
        while bins - too_few > step:
            between = (too_few + bins) // 2
            fewer = _balance(costs, self.columns, between * together, capacity)
            if fewer is None:
                too_few = between
            else:
                bins, groups = between, fewer
        return [np.array(group, dtype=np.int64) for group in groups]

    def padded(self, capacity: int) -> list[Int64]:
        """Groups of similar length, rows x longest <= `capacity`; a lone longer row is kept."""
        order = np.argsort(-self.columns, kind="stable")
        groups: list[Int64] = []
        start = 0
        while start < len(order):
            count = max(1, capacity // int(_round_up(self.columns[order[start]], self.split.columns)))
            groups.append(order[start : start + count])
            start += count
        together = self.split.ranks * self.split.count
        while len(groups) % together and any(len(group) > 1 for group in groups):
            # Splitting the largest group keeps all ranks busy while a filler would leave one idle.
            sizes = [len(g) * int(self.columns[g[0]]) if len(g) > 1 else 0 for g in groups]
            largest = int(np.argmax(sizes))
            groups[largest : largest + 1] = np.array_split(groups[largest], 2)
        return groups

    def deal(self, groups: list[Int64], packed: bool) -> list[list[Int64]]:
        """The groups of each rank, the costliest first; empty ones fill up."""
        ranks = self.split.ranks
        each = -(-len(groups) // (ranks * self.split.count)) * self.split.count
        costs = np.array([self._cost(group, packed) for group in groups])
        dealt = _balance(costs, np.ones(len(groups), dtype=np.int64), ranks, each)
        assert dealt is not None, "there is room for every group"
        nothing = np.zeros(0, dtype=np.int64)
        return [[groups[i] for i in hand] + [nothing] * (each - len(hand)) for hand in dealt]

    def _cost(self, group: Int64, packed: bool) -> float:
        if not len(group):
            return 0.0
        columns = self.columns[group] if packed else np.full(len(group), self.columns[group].max())
        return float(self.cost.of(columns, self.responses[group]).sum())


def _balance(costs: Float64, sizes: Int64, bins: int, capacity: int) -> list[list[int]] | None:
    """Deal items into `bins`, costliest first, each to the cheapest bin that has room; None if none has.

    An item larger than `capacity` takes an empty bin. This is Graham's longest-processing-time rule: the
    costliest bin is at most 4/3 of the best possible, and close to it with many items.
    """
    found: list[list[int]] = [[] for _ in range(bins)]
    open_bins = _OpenBins(bins, capacity)
    for item in np.argsort(-costs, kind="stable").tolist():
        size = int(sizes[item])
        taken = open_bins.take(size)
        if taken is None:
            return None
        load, chosen, room = taken
        found[chosen].append(item)
        open_bins.put(load + float(costs[item]), chosen, max(0, room - size))
    return found


class _OpenBins:
    """Bins by load and room, the cheapest of those with enough room found in logarithmic time.

    A tree over all rooms from 0 to `capacity`: each node has the cheapest bin of the rooms below it.
    """

    _NONE: tuple[float, int, int] = (math.inf, -1, -1)

    def __init__(self, bins: int, capacity: int) -> None:
        self._capacity, self._leaves = capacity, 1 << capacity.bit_length()
        self._tree = [self._NONE] * (2 * self._leaves)
        self._heaps: dict[int, list[tuple[float, int, int]]] = {}  # by room: load, number, room
        self._heaps[capacity] = [(0.0, i, capacity) for i in range(bins)]
        self._renew(capacity)

    def take(self, size: int) -> tuple[float, int, int] | None:
        """Take out the cheapest bin with room for `size`, or that is empty: its load, number and room."""
        node = self._leaves + min(size, self._capacity)
        best = self._tree[node]
        while node > 1:
            if node % 2 == 0:
                best = min(best, self._tree[node + 1])
            node //= 2
        if best is self._NONE:
            return None
        heapq.heappop(self._heaps[best[2]])
        self._renew(best[2])
        return best

    def put(self, load: float, number: int, room: int) -> None:
        """A bin that was taken out."""
        heapq.heappush(self._heaps.setdefault(room, []), (load, number, room))
        self._renew(room)

    def _renew(self, room: int) -> None:
        node, heap = self._leaves + room, self._heaps[room]
        best = heap[0] if heap else self._NONE
        while node and self._tree[node] != best:
            self._tree[node] = best
            best = min(best, self._tree[node ^ 1])
            node //= 2


def _round_up(size: Int64, multiple: int) -> Int64:
    return -(-size // multiple) * multiple


def _responses(sequences: Sequences, rows: Int64) -> Int64:
    return np.array([len(sequences[int(r)].response_ids) for r in rows], dtype=np.int64)
