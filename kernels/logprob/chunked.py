"""Linear log-prob in blocks: the library's product into a workspace, then a pass over its rows.

The logits exist one block at a time; backward computes them again. Rows are read by Triton kernels on CUDA
and by torch on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from kernels.logprob import blocks
from kernels.logprob import rows as torch_rows
from kernels.logprob.statistics import FLOOR, Rows, merge, no_statistics

CPU_ELEMENTS = 1 << 18  # 1 MiB of float32 stays in a core's cache
CUDA_ELEMENTS = 1 << 25  # 128 MiB of float32 logits, 64 MiB of bfloat16 gradients


def statistics(hidden: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """Statistics [4, T] of hidden [T, H] @ weight [V, H].T."""
    height, width = blocks.block_shape(len(hidden), _elements(hidden))
    parts = no_statistics(max(1, -(-rows.columns // width)), hidden)
    for tokens in blocks.cut(len(hidden), height):
        for i, columns in enumerate(blocks.cut(rows.columns, width)):
            logits = blocks.product(hidden[tokens], weight[columns].T)
            part = rows.part(tokens, columns)
            parts[i, :, tokens] = (
                _kernels().logits_statistics(logits, part)
                if logits.is_cuda
                else torch_rows.statistics(logits, part)
            )
    return merge(parts)


def gradients(
    hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor,
    d_hidden: Tensor | None, d_weight: Tensor | None,
) -> None:  # fmt: skip
    """Write d_hidden [T, H] and add to d_weight [V, H], where they are given."""
    blocks.gradients(
        hidden, weight, rows, slopes, d_hidden, d_weight, elements=_elements(hidden), d_logits=_d_logits
    )


def logits_statistics(logits: Tensor, rows: Rows) -> Tensor:
    """Statistics [4, T] of logits [T, V], which stay as they are."""
    if logits.is_cuda:
        return _kernels().logits_statistics(logits, rows)
    result = no_statistics(1, logits)[0]
    for band, part in _bands(logits, rows) if rows.columns else ():
        result[:, band] = torch_rows.statistics(_copy(logits[band], part), part)
    return result


def logits_gradients(logits: Tensor, rows: Rows, slopes: Tensor, out: Tensor) -> None:
    """Write d_logits [T, V] to `out`, which may be `logits`."""
    if logits.is_cuda:
        return _kernels().logits_gradients(logits, rows, slopes, out)
    for band, part in _bands(logits, rows) if rows.columns else ():
        out[band, : rows.columns] = torch_rows.gradients(_copy(logits[band], part), part, slopes[:, band])
    out[:, rows.columns :] = 0


def _d_logits(hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor) -> Tensor:
    logits = blocks.product(hidden, weight.T)
    if not logits.is_cuda:
        return torch_rows.gradients(logits, rows, slopes)
    out = torch.empty_like(logits, dtype=hidden.dtype)
    _kernels().logits_gradients(logits, rows, slopes, out)
    return out


def _bands(logits: Tensor, rows: Rows) -> Iterator[tuple[slice, Rows]]:
    """Bands of whole rows of about a block's size."""
    height = max(1, CPU_ELEMENTS // logits.shape[1])
    real = slice(0, rows.columns)
    return ((band, rows.part(band, real)) for band in blocks.cut(len(logits), height))


def _copy(logits: Tensor, rows: Rows) -> Tensor:
    """The real columns in float32; a caller may have masked some with -inf, of which 0 * x would be NaN."""
    return logits[:, : rows.columns].to(torch.float32, copy=True).clamp_(min=FLOOR)


def _elements(hidden: Tensor) -> int:
    return CUDA_ELEMENTS if hidden.is_cuda else CPU_ELEMENTS


def _kernels() -> Any:
    """The Triton row kernels, imported where there is a GPU to run them."""
    return import_module("kernels.logprob.triton")
