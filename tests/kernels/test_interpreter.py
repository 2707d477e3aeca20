"""The interpreter's bfloat16, as tests/kernels/interpreter.py patches it; a GPU needs no patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs

pytestmark = pytest.mark.interpret
N: Any = 32  # pyright would have a tl.constexpr


@triton.jit
def product_kernel(a, b, out, rounded, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    c = tl.dot(tl.load(a + at), tl.load(b + at))
    tl.store(out + at, c)
    tl.store(rounded + at, c.to(tl.bfloat16))


@triton.jit
def sum_kernel(a, b, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(a + i) + tl.load(b + i))


@triton.jit
def total_kernel(a, out, N: tl.constexpr):
    tl.store(out, tl.sum(tl.load(a + tl.arange(0, N))))


def numbers(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16().to(device)


def test_bfloat16_product_and_rounding(device: torch.device) -> None:
    a, b = numbers(2, 32, 32, device=device)
    out, rounded = torch.empty(32, 32, device=device), torch.empty(32, 32, device=device).bfloat16()
    product_kernel[(1,)](a, b, out, rounded, N)
    assert (out - a.float() @ b.float()).abs().max() < 1e-5
    assert torch.equal(rounded, out.bfloat16())


def test_arithmetic_on_bfloat16_is_refused(device: torch.device) -> None:
    if not knobs.runtime.interpret:
        pytest.skip("a GPU computes it")
    a, b = numbers(2, 32, device=device)
    with pytest.raises(Exception, match="arithmetic on bfloat16 is wrong in the interpreter"):
        sum_kernel[(1,)](a, b, torch.empty_like(a), N)
    with pytest.raises(Exception, match="arithmetic on bfloat16 is wrong in the interpreter"):
        total_kernel[(1,)](a, torch.empty_like(a[:1]), N)
