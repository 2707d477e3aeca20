"""Log-probability and entropy of target tokens straight from hidden states, without a [T, V] tensor.

    logprob, entropy = linear_logprob(hidden, weight, target)   # a token's logits live and die in a tile

`reference` materializes the logits and is what the others are measured against; `chunked` multiplies block by
block with torch's matrix product; `triton` fuses the product with the softmax statistics. Derivation:
kernels/README.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from kernels.logprob import reference
from kernels.logprob.autograd import LinearLogProb
from kernels.logprob.statistics import Rows

__all__ = ["LogprobBackend", "linear_logprob"]

LogprobBackend = Literal["auto", "triton", "chunked", "reference"]


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    entropy: bool = True,
    backend: LogprobBackend = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-probability of `target` and entropy of softmax(hidden @ weight.T / temperature).

    hidden [T, H], weight [V, H] (this rank's rows of the vocabulary, of hidden's type), target int64 [T] in
    the whole vocabulary (a token outside it has log-prob -inf), temperature > 0, a scalar or [T], vocab_start
    the first row this rank owns, vocab_size the unpadded size of the whole vocabulary (columns beyond it get
    probability 0), group the process group the vocabulary is split over. Returns (logprob, entropy), each
    float32 [T], differentiable in hidden and weight and the same bits on every rank; without `entropy` the
    second is empty. The gradient of hidden is this rank's part: the caller sums it over `group`.

    If weight has `main_grad` (megatron's data-parallel buffers), its gradient is added there and autograd
    gets none; another use of the same weight, a tied embedding, adds its own as usual.

    backend: `auto` is `triton` for bfloat16 on CUDA, else `chunked`. Raises ValueError if shapes, types or
    options do not fit.
    """
    _check(hidden, target, temperature, vocab_size)
    if weight.dtype is not hidden.dtype or weight.shape[1:] != hidden.shape[1:]:
        raise ValueError(
            f"weight must be {hidden.dtype} [V, {hidden.shape[1]}] as hidden is, "
            f"got {weight.dtype} {list(weight.shape)}"
        )
    if backend == "reference":
        return reference.linear_logprob(
            hidden, weight, target, temperature=temperature, vocab_start=vocab_start, vocab_size=vocab_size,
            group=group, entropy=entropy,
        )  # fmt: skip
    if backend == "auto":
        backend = "triton" if hidden.is_cuda and hidden.dtype is torch.bfloat16 else "chunked"
    if backend not in ("triton", "chunked"):
        raise ValueError(f"backend {backend!r} is none of auto, triton, chunked, reference")
    kernels = import_module(f"kernels.logprob.{backend}")
    rows = Rows.of(target, temperature, vocab_start, weight.shape[0], vocab_size, entropy)
    result = LinearLogProb.apply(hidden.contiguous(), weight.contiguous(), rows, kernels, group)
    assert result is not None
    return result


def _check(hidden: Tensor, target: Tensor, temperature: float | Tensor, vocab_size: int | None) -> None:
    """Raise ValueError unless `hidden` is a float matrix [T, H] and the others fit its rows."""
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden must be a float matrix [T, H], got {hidden.dtype} {list(hidden.shape)}")
    if target.dtype is not torch.int64 or target.shape != hidden.shape[:1]:
        raise ValueError(f"target must be int64 [{len(hidden)}], got {target.dtype} {list(target.shape)}")
    if isinstance(temperature, Tensor):
        if temperature.shape != target.shape:
            raise ValueError(
                f"temperature must be a number or [{len(target)}], got {list(temperature.shape)}"
            )
    elif not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"vocab_size must be >= 1, got {vocab_size}")
