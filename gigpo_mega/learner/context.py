"""Which columns of a micro-batch a rank holds, and what attention must know of them.

Without context parallelism a rank holds all. With it every sequence is cut into 2 x ranks chunks, and rank r
holds the r-th from the front and the r-th from the back: causal attention then costs every rank the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from gigpo_mega.learner.transfer import on_device
from gigpo_mega.types import Int64


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive columns `start` to `end` of the sequence that begins at column `first`."""

    first: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class HeldColumns:
    """The columns of a micro-batch on this rank, for `layers.CausalAttention`.

    megatron hands it through in the place of its `PackedSeqParams`.
    """

    qkv_format: ClassVar[str] = "sbhd"  # to megatron one long sequence
    spans: tuple[Span, ...]  # in the order in which this rank holds them, as many of each sequence
    lengths: tuple[int, ...]  # of the whole sequences
    order: Tensor | None = None  # [s] from gathered columns to the micro-batch's; None if all are here


def spans(starts: Int64, ranks: int, rank: int) -> tuple[Span, ...]:
    """The spans that `rank` holds of sequences that begin at `starts` [m + 1]."""
    bounds = list(pairwise(starts.tolist()))
    if ranks == 1:
        return tuple(Span(a, a, b) for a, b in bounds)
    found: list[Span] = []
    for a, b in bounds:
        size = (b - a) // (2 * ranks)
        found += (Span(a, a + i * size, a + (i + 1) * size) for i in (rank, 2 * ranks - 1 - rank))
    return tuple(found)


def indices(held: Sequence[Span]) -> Int64:
    """The columns of the spans `held`, one after the other."""
    return np.concatenate([np.arange(span.start, span.end) for span in held])


def columns(starts: Int64, ranks: int, rank: int, device: torch.device) -> HeldColumns:
    """What attention must know on `rank`."""
    held, lengths = spans(starts, ranks, rank), tuple(np.diff(starts).tolist())
    if ranks == 1:
        return HeldColumns(held, lengths)
    gathered = np.concatenate([indices(spans(starts, ranks, r)) for r in range(ranks)])
    return HeldColumns(held, lengths, on_device(np.argsort(gathered), device))


def packed_for_transformer_engine(starts: Int64, device: torch.device) -> PackedSeqParams:
    """Transformer Engine's description of packed sequences; it splits attention over context ranks itself."""
    bounds = on_device(starts.astype(np.int32), device)
    longest = int(np.diff(starts).max())
    return PackedSeqParams("thd", bounds, bounds, bounds, bounds, longest, longest)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, total: int, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(places)
        whole = values.new_zeros(total)
        whole[places] = values
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        # Every rank computes the same loss from the whole: each takes the gradient of its own part.
        (places,) = ctx.saved_tensors
        return grads[0][places], None, None, None


def join(values: Tensor, places: Tensor, total: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's `values` [k] at `places` [k], and the other ranks', as one [total]."""
    whole = _Join.apply(values, places, total, group)
    assert whole is not None
    return whole
