"""Linear log-prob in blocks: torch's matrix product into a workspace, then a pass over its rows.

The logits exist one block at a time; backward computes them again. Rows are read by Triton kernels on CUDA
and by torch on the CPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor

from kernels.logprob import blocks
from kernels.logprob.statistics import Rows, merge, no_statistics
from kernels.sizes import CPU_ELEMENTS, CUDA_ELEMENTS


def statistics(hidden: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """Statistics [4, T] of hidden [T, H] @ weight [V, H].T."""
    height, width = blocks.block_shape(len(hidden), _elements(hidden))
    parts = no_statistics(max(1, -(-rows.columns // width)), hidden)
    for tokens in blocks.cut(len(hidden), height):
        for i, columns in enumerate(blocks.cut(rows.columns, width)):
            logits = blocks.product(hidden[tokens], weight[columns].T)
            parts[i, :, tokens] = _of_rows(logits).statistics(logits, rows.part(tokens, columns))
    return merge(parts)


def gradients(
    hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor,
    d_hidden: Tensor | None, d_weight: Tensor | None,
) -> None:  # fmt: skip
    """Write d_hidden [T, H] and add to d_weight [V, H], if they are given."""

    def d_logits(hidden: Tensor, weight: Tensor, rows: Rows, slopes: Tensor) -> Tensor:
        logits = blocks.product(hidden, weight.T)
        return _of_rows(logits).gradients(logits, rows, slopes, hidden.dtype)

    blocks.gradients(
        hidden, weight, rows, slopes, d_hidden, d_weight, elements=_elements(hidden), d_logits=d_logits
    )


def _elements(hidden: Tensor) -> int:
    return CUDA_ELEMENTS if hidden.is_cuda else CPU_ELEMENTS


def _of_rows(logits: Tensor) -> Any:
    """The module that reads rows of logits; Triton is imported only if there is a GPU."""
    return import_module("kernels.logprob." + ("row_kernels" if logits.is_cuda else "rows"))
