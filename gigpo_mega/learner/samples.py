"""Rows of an iteration from the leader to the ranks, each of which gets the tokens it computes, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from gigpo_mega.learner.layout import Layout
from gigpo_mega.types import Float32, Int32, Int64, RowTable


@dataclass(frozen=True, slots=True)
class Outline:
    """What every rank knows of all N rows."""

    prompts: Int64  # [N] tokens
    responses: Int64  # [N] tokens
    described: str  # rewards and tasks, for messages

    @classmethod
    def of(cls, rows: RowTable) -> Outline:
        """The outline of `rows`."""
        more = f" and {len(rows.tasks) - 3} more" if len(rows.tasks) > 3 else ""
        named = ", ".join(rows.tasks[:3]) + more
        rewards = f"from {rows.reward.min():g} to {rows.reward.max():g}" if len(rows) else "none"
        return cls(
            np.array([len(step.prompt_ids) for step in rows.steps], dtype=np.int64),
            np.array([len(step.response_ids) for step in rows.steps], dtype=np.int64),
            f"rewards {rewards}, task(s) {named or 'unnamed'}",
        )

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, slots=True)
class Sample:
    """A row's tokens, P of the prompt and R of the response."""

    prompt_ids: Int32  # [P]
    response_ids: Int32  # [R]
    logprobs: Float32  # [R] as sampled
    versions: Int32  # [R] of the weights that sampled


@dataclass(frozen=True, slots=True)
class Samples:
    """The tokens of some rows as columns; an item is a row of the iteration's table."""

    rows: Int64  # [k] ascending
    ids: Int32  # prompt and response of each row, one after the other
    logprobs: Float32  # as sampled, of each row's response
    versions: Int32  # of the weights that sampled, of each row's response
    ends: Int64  # [k, 3] where each row's prompt and response end in `ids`, and its response in `logprobs`

    @staticmethod
    def column(rows: RowTable, chosen: Int64, size: int) -> Int32:
        """Ids of prompts and responses, bits of log-probabilities, weight versions of the rows `chosen` as
        one column [size], padded."""
        steps = [rows.steps[row] for row in chosen]
        ids = [part for step in steps for part in (step.prompt_ids, step.response_ids)]
        parts = [*ids, *(step.logprobs.view(np.int32) for step in steps), *(step.versions for step in steps)]
        filled = sum(map(len, parts))
        return np.concatenate([*parts, np.zeros(size - filled, np.int32)], dtype=np.int32)

    @classmethod
    def of(cls, outline: Outline, rows: Int64, column: Int32) -> Samples:
        """`rows` from a `column` without its padding."""
        prompts, responses = outline.prompts[rows], outline.responses[rows]
        tokens, said = int((prompts + responses).sum()), int(responses.sum())
        ids, logprobs, versions = np.split(column, [tokens, tokens + said])
        whole = np.cumsum(prompts + responses)
        ends = np.stack([whole - responses, whole, np.cumsum(responses)], axis=1)
        return cls(rows, ids, logprobs.view(np.float32), versions, ends)

    def __getitem__(self, row: int) -> Sample:
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row:
            raise KeyError(f"row {row} was handed to another data-parallel rank")
        prompt, response, after = self.ends[place].tolist()
        _, start, before = self.ends[place - 1].tolist() if place else (0, 0, 0)
        said = slice(before, after)
        return Sample(
            self.ids[start:prompt], self.ids[prompt:response], self.logprobs[said], self.versions[said]
        )


def outline(layout: Layout, rows: RowTable) -> Outline:
    """The outline of the leader's `rows`, on every rank; those of the other ranks are not read."""
    box: list[Outline | None] = [None]
    if layout.leader:
        box = [Outline.of(rows)]
    if layout.world > 1:
        dist.broadcast_object_list(box)
    assert box[0] is not None
    return box[0]


def hand_out(layout: Layout, known: Outline, rows: RowTable, wanted: Sequence[Int64]) -> Samples:
    """The rows `wanted` by this rank's data-parallel rank, from the leader's `rows`.

    `wanted` has the rows of each data-parallel rank, each ascending, the same on every rank. A token travels
    once from the leader to the first rank of those that share its layers, and on between them.
    """
    mine = wanted[layout.data_rank]
    sizes = [int((known.prompts[chosen] + 3 * known.responses[chosen]).sum()) for chosen in wanted]
    column = np.empty(max(sizes), dtype=np.int32)
    if layout.leader:
        columns = [Samples.column(rows, chosen, len(column)) for chosen in wanted]
        column = columns[0]
        if layout.data > 1:
            parts = [torch.from_numpy(part) for part in columns]
            dist.scatter(torch.from_numpy(column), parts, group_src=0, group=layout.data_group)
    elif layout.data > 1 and layout.tensor_rank == layout.pipeline_rank == layout.context_rank == 0:
        dist.scatter(torch.from_numpy(column), None, group_src=0, group=layout.data_group)
    column = column[: sizes[layout.data_rank]]
    _spread(layout, torch.from_numpy(column))
    return Samples.of(known, mine, column)


def hand_back(layout: Layout, known: Outline, found: Mapping[int, Float32]) -> Float32 | None:
    """What the last pipeline stages `found` for rows' response tokens, on the leader: [all rows' tokens].

    NaN where no rank has a row; no row is in two ranks' `found`. None on the other ranks.
    """
    if layout.tensor_rank or layout.context_rank:  # they have the same as the first of them
        return None
    mine: list[Mapping[int, Float32]] = [found] * layout.data
    if layout.last_stage and layout.data > 1:
        dist.gather_object(
            found, mine if not layout.data_rank else None, group_dst=0, group=layout.data_group
        )
    if layout.data_rank:
        return None
    if layout.pipeline > 1:
        last = layout.pipeline - 1
        dist.broadcast_object_list(mine, group_src=last, group=layout.pipeline_group)
    if not layout.leader:
        return None
    ends = np.cumsum(known.responses)
    column = np.full(int(ends[-1]) if len(ends) else 0, np.nan, dtype=np.float32)
    for row, values in (item for part in mine for item in part.items()):
        column[ends[row] - known.responses[row] : ends[row]] = values
    return column


def _spread(layout: Layout, column: torch.Tensor) -> None:
    """Overwrite `column` with that of the first of the ranks that have the same data-parallel rank."""
    if layout.context > 1 and layout.tensor_rank == layout.pipeline_rank == 0:
        dist.broadcast(column, group_src=0, group=layout.context_group)
    if layout.tensor > 1 and layout.pipeline_rank == 0:
        dist.broadcast(column, group_src=0, group=layout.tensor_group)
    if layout.pipeline > 1:
        dist.broadcast(column, group_src=0, group=layout.pipeline_group)
