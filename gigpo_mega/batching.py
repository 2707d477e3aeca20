"""Rows to micro-batches: packed or padded sequences within a token budget, balanced by what they cost."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gigpo_mega.config import BatchConfig
from gigpo_mega.types import Bool, Float32, Float64, Int64, Step


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
    mask: Bool  # [b, s] True where the label is a response token
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


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-adds of a sequence: linear layers, causal attention over half of the square, output layer."""

    token: float = 1.0  # of one column in all layers but attention's core
    pair: float = 0.0  # of one column for each column of its sequence
    response: float = 0.0  # of one response token in the output layer

    def of(self, columns: Int64, responses: Int64) -> Float64:
        """The cost of sequences with `columns` and `responses` tokens, elementwise."""
        return columns * (self.token + self.pair * columns) + self.response * responses


def updates(rows: Int64, cfg: BatchConfig, rng: np.random.Generator) -> Iterator[Int64]:
    """Cut `rows` [N] into the rows of each optimizer update, `cfg.epochs` times over.

    Pieces differ by at most one row, so that no update is starved.
    """
    for _ in range(cfg.epochs):
        order = rng.permutation(rows) if cfg.shuffle else rows
        pieces = max(1, round(len(order) / cfg.rows)) if cfg.rows else 1
        for piece in np.array_split(order, pieces):
            if len(piece):
                yield piece


def pack(
    steps: Sequence[Step], rows: Int64, cfg: BatchConfig, split: Split | None = None, cost: Cost | None = None
) -> list[MicroBatch]:
    """The micro-batches of `rows` [q] for the data-parallel rank of `split`, the costliest first.

    None has more than `cfg.microbatch_tokens` columns (a longer row stands alone). Every rank gets the same
    number of about the same cost; what is missing are fillers of weight 0.
    """
    split, cost = split or Split(), cost or Cost()
    plan = _Plan.of(steps, rows, split, cost)
    capacity = max(1, cfg.microbatch_tokens // split.columns) * split.columns
    groups = plan.packed(capacity) if cfg.packed else plan.padded(capacity)
    build = _pack if cfg.packed else _pad
    shortest = rows[np.argmin(plan.columns)]
    mine: list[MicroBatch] = []
    for group in plan.deal(groups, cfg.packed)[split.rank]:
        chosen, weight = (rows[group], 1.0) if len(group) else (shortest[None], 0.0)
        mine.append(build(steps, chosen, weight, split))
    return mine


@dataclass(frozen=True, slots=True)
class _Plan:
    """How rows are grouped; groups are arrays of positions in them."""

    columns: Int64  # [q] with alignment
    responses: Int64  # [q]
    split: Split
    cost: Cost

    @classmethod
    def of(cls, steps: Sequence[Step], rows: Int64, split: Split, cost: Cost) -> _Plan:
        columns = _round_up(_columns(steps, rows), split.sequence)
        return cls(columns, _responses(steps, rows), split, cost)

    def packed(self, capacity: int) -> list[Int64]:
        """As few groups as the ranks allow, none of more than `capacity` columns."""
        together = self.split.ranks * self.split.count
        costs = self.cost.of(self.columns, self.responses)
        bins = -(-int(self.columns.sum()) // (capacity * together)) * together
        while (groups := _balance(costs, self.columns, bins, capacity)) is None:
            bins += together
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
            # Splitting the largest group keeps all ranks busy where a filler would leave one idle.
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
    """Deal items into `bins`, costliest first, each to the cheapest bin that has room; None where none has.

    An item larger than `capacity` takes an empty bin. This is Graham's longest-processing-time rule: the
    costliest bin is at most 4/3 of the best possible, and close to it with many items.
    """
    found: list[list[int]] = [[] for _ in range(bins)]
    room = [capacity] * bins
    heap = [(0.0, i) for i in range(bins)]
    for item in np.argsort(-costs, kind="stable").tolist():
        passed: list[tuple[float, int]] = []
        while heap and sizes[item] > room[heap[0][1]] and found[heap[0][1]]:
            passed.append(heapq.heappop(heap))
        if not heap:
            return None
        load, chosen = heap[0]
        found[chosen].append(item)
        room[chosen] -= int(sizes[item])
        heapq.heapreplace(heap, (load + float(costs[item]), chosen))
        for entry in passed:
            heapq.heappush(heap, entry)
    return found


def _round_up(size: Int64, multiple: int) -> Int64:
    return -(-size // multiple) * multiple


def _pad(steps: Sequence[Step], rows: Int64, weight: float, split: Split) -> MicroBatch:
    """Each row from column 0 on."""
    width = int(_round_up(_columns(steps, rows).max(), split.columns))
    places = [(i, 0) for i in range(len(rows))]
    return _fill(steps, rows, places, (len(rows), width), np.array([0, width]), weight)


def _pack(steps: Sequence[Step], rows: Int64, weight: float, split: Split) -> MicroBatch:
    """One row after the other."""
    widths = _round_up(_columns(steps, rows), split.sequence)
    starts = np.concatenate([[0], np.cumsum(widths)])
    starts[-1] = _round_up(starts[-1], split.columns)
    places = [(0, int(start)) for start in starts[:-1]]
    return _fill(steps, rows, places, (1, int(starts[-1])), starts, weight)


def _fill(
    steps: Sequence[Step],
    rows: Int64,
    places: list[tuple[int, int]],
    shape: tuple[int, int],
    starts: Int64,
    weight: float,
) -> MicroBatch:
    tokens, labels = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.bool_)
    for r, (line, start) in zip(rows, places, strict=True):
        step = steps[int(r)]
        sequence = np.concatenate([step.prompt_ids, step.response_ids])
        end = start + len(sequence) - 1
        tokens[line, start:end] = sequence[:-1]
        labels[line, start:end] = sequence[1:]
        mask[line, start + len(step.prompt_ids) - 1 : end] = True
    return MicroBatch(tokens, labels, mask, starts.astype(np.int64), rows, _responses(steps, rows), weight)


def _responses(steps: Sequence[Step], rows: Int64) -> Int64:
    return np.array([len(steps[int(r)].response_ids) for r in rows], dtype=np.int64)


def _columns(steps: Sequence[Step], rows: Int64) -> Int64:
    """A sequence's last token is only ever a label."""
    prompts = np.array([len(steps[int(r)].prompt_ids) for r in rows], dtype=np.int64)
    return prompts + _responses(steps, rows) - 1
