"""Rows to padded micro-batches of similar length, dealt evenly to data-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gigpo_mega.config import BatchConfig
from gigpo_mega.types import Bool, Float32, Int64, Step


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded sequences; per-token arrays are flat over `mask` in row-major order ([n])."""

    tokens: Int64  # [b, s] prompt and response without its last token
    labels: Int64  # [b, s] the next token
    mask: Bool  # [b, s] True where the label is a response token
    rows: Int64  # [b] row of the iteration's table
    lengths: Int64  # [b] response tokens of each row
    weight: float  # 0 for a filler that only keeps ranks in step, else 1

    def spread(self, values: Float32) -> Float32:
        """Per-row values [N] of the whole table -> per-token values [n]."""
        return np.repeat(values[self.rows], self.lengths)


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


def cut(lengths: Int64, rows: Int64, budget: int) -> list[Int64]:
    """Group `rows` by length so that rows x longest sequence <= budget (a lone longer row is kept).

    Returns row arrays, longest first: the largest allocation comes first, and ties keep the table's order.
    """
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    batches: list[Int64] = []
    start = 0
    while start < len(order):
        count = max(1, budget // int(lengths[order[start]]))
        batches.append(order[start : start + count])
        start += count
    return batches


def pack(
    steps: Sequence[Step], rows: Int64, budget: int, *, ranks: int = 1, rank: int = 0, multiple: int = 1
) -> list[MicroBatch]:
    """This rank's micro-batches of `rows` [n], within `budget` padded tokens each.

    Every rank gets the same number of micro-batches, dealt in snake order by size; a rank that runs out gets
    a filler of weight 0. Widths are rounded up to `multiple` (sequence parallelism splits them).
    """
    lengths = np.array([len(s.prompt_ids) + len(s.response_ids) - 1 for s in steps], dtype=np.int64)
    whole = cut(lengths, rows, budget)

    def size(batch: Int64) -> int:
        return len(batch) * int(lengths[batch[0]])

    while len(whole) % ranks and any(len(batch) > 1 for batch in whole):
        # Splitting the largest batch keeps all ranks busy where a filler would leave one idle.
        largest = max((i for i, batch in enumerate(whole) if len(batch) > 1), key=lambda i: size(whole[i]))
        whole[largest : largest + 1] = np.array_split(whole[largest], 2)
    whole.sort(key=size, reverse=True)
    mine: list[MicroBatch] = []
    for turn in range(-(-len(whole) // ranks)):
        place = turn * ranks + (rank if turn % 2 == 0 else ranks - 1 - rank)
        filler = place >= len(whole)
        chosen = whole[0][:1] if filler else whole[place]
        mine.append(_build(steps, chosen, 0.0 if filler else 1.0, multiple))
    return mine


def _build(steps: Sequence[Step], rows: Int64, weight: float, multiple: int) -> MicroBatch:
    chosen = [steps[int(r)] for r in rows]
    sequences = [np.concatenate([s.prompt_ids, s.response_ids]) for s in chosen]
    width = -(-(max(len(s) for s in sequences) - 1) // multiple) * multiple
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.bool_)
    for i, (step, sequence) in enumerate(zip(chosen, sequences, strict=True)):
        end = len(sequence) - 1
        tokens[i, :end] = sequence[:-1]
        labels[i, :end] = sequence[1:]
        mask[i, len(step.prompt_ids) - 1 : end] = True
    responses = np.array([len(s.response_ids) for s in chosen], dtype=np.int64)
    return MicroBatch(tokens, labels, mask, rows, responses, weight)
