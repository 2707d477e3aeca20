"""Blocks of tokens x vocabulary: their size, their products, and the backward loop over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isqrt

import torch
from torch import Tensor

from kernels.logprob.statistics import Rows

ALIGN = 256  # blocks begin at tiles, and at addresses that descriptors may have

DLogits = Callable[[Tensor, Tensor, Rows, Tensor], Tensor]
"""(hidden [t, H], weight [v, H], rows, slopes [4, t]) -> d_logits [t, v]."""


def block_shape(tokens: int, elements: int, whole: bool = False) -> tuple[int, int]:
    """(tokens, columns) of a block of about `elements` logits: square, or of all tokens if `whole`.

    Backward reads and writes d_hidden once per slice of the vocabulary and d_weight once per block of
    tokens, so its traffic is proportional to 1 / columns + 1 / tokens, which is least for a square.
    """
    count = 1 if whole else max(1, -(-tokens // isqrt(elements)))
    height = -(-tokens // count)
    height = max(1, min(tokens, -(-height // ALIGN) * ALIGN))
    return height, max(ALIGN, elements // height // ALIGN * ALIGN)


def cut(size: int, step: int) -> Iterator[slice]:
    """Slices of `step` that cover range(size)."""
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


def product(one: Tensor, other: Tensor) -> Tensor:
    """one @ other in float32, never rounded to the operands' type (the CPU has no mixed product)."""
    if one.dtype is torch.float32 or not one.is_cuda:
        return one.float() @ other.float()
    return torch.mm(one, other, out_dtype=torch.float32)


def add_product(out: Tensor, one: Tensor, other: Tensor) -> None:
    """out += one @ other, summed in float32; `other` is taken in the type of `one`."""
    other = other.to(one.dtype)
    if out.dtype == one.dtype:
        out.addmm_(one, other)
    elif out.is_cuda and out.dtype is torch.float32:
        torch.addmm(out, one, other, out_dtype=torch.float32, out=out)
    else:
        out.add_(product(one, other))


def gradients(
    hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor,
    d_hidden: Tensor | None, d_weight: Tensor | None, *, elements: int, d_logits: DLogits,
) -> None:  # fmt: skip
    """Write d_hidden [T, H] and add to d_weight [V, H], if given, one block of d_logits after another.

    Each row of a d_weight of less than float32 is added to only once, because every addition rounds it.
    """
    whole = d_weight is not None and d_weight.dtype is not torch.float32
    height, width = block_shape(len(hidden), elements, whole)
    for tokens in cut(len(hidden), height):
        h = hidden[tokens]
        total = None if d_hidden is None else torch.zeros_like(h, dtype=torch.float32)
        for columns in cut(rows.columns, width):
            w = weight[columns]
            gradient = d_logits(h, w, rows.part(tokens, columns), slopes[:, tokens])
            if total is not None:
                add_product(total, gradient, w)
            if d_weight is not None:
                add_product(d_weight[columns], gradient.T, h)
            del gradient  # before the next one is made
        if d_hidden is not None and total is not None:
            d_hidden[tokens] = total
        del total
