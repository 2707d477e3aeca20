"""kernels.logprob at the size of a 7B policy's head, on a GPU: errors against float64, and extra memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.logprob import LogprobBackend, linear_logprob
from tests.kernels import exact

pytestmark = pytest.mark.gpu
TOKENS, WIDTH, VOCAB, REAL = 4096, 3584, 152_064, 151_936
EXTRA = 0.6e9  # bytes in addition to inputs, results and main_grad
BACKENDS: tuple[LogprobBackend, ...] = ("triton", "chunked")


def head(device: torch.device) -> tuple[torch.nn.Parameter, Tensor]:
    """A weight with megatron's float32 buffer for its gradient."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(VOCAB, WIDTH, device=device, dtype=torch.bfloat16, generator=generator)
    parameter = torch.nn.Parameter(weight.mul_(WIDTH**-0.5))
    main_grad = torch.zeros(VOCAB, WIDTH, device=device)
    parameter.main_grad = main_grad  # pyright: ignore[reportAttributeAccessIssue]
    return parameter, main_grad


def tokens(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, target, d_logprob, d_entropy); logits have a deviation of 4."""
    generator = torch.Generator(device).manual_seed(1)
    hidden = 4 * torch.randn(count, WIDTH, device=device, dtype=torch.bfloat16, generator=generator)
    target = torch.randint(0, REAL, (count,), device=device, generator=generator)
    d_logprob, d_entropy = torch.randn(2, count, device=device, generator=generator)
    return hidden.requires_grad_(), target, d_logprob, d_entropy


@pytest.mark.parametrize("count", [TOKENS, TOKENS - 77], ids=["T4096", "T4019"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradient_of_hidden(backend: LogprobBackend, count: int, device: torch.device) -> None:
    """Every sixteenth row against float64."""
    weight, _ = head(device)
    hidden, target, d_logprob, d_entropy = tokens(count, device)
    logprob, entropy = linear_logprob(hidden, weight, target, vocab_size=REAL, backend=backend)
    (d_logprob * logprob + d_entropy * entropy).sum().backward()
    assert hidden.grad is not None
    some = slice(0, count, 16)
    expected = exact.linear_logprob(
        hidden[some], weight, target[some], d_logprob[some], d_entropy[some], vocab_size=REAL
    )
    assert (logprob[some] - expected[0]).abs().max() < 5e-5
    assert (entropy[some] - expected[1]).abs().max() < 5e-5
    assert (hidden.grad[some] - expected[2]).norm() < 0.006 * expected[2].norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_weight(backend: LogprobBackend, device: torch.device) -> None:
    weight, main_grad = head(device)
    hidden, target, d_logprob, d_entropy = tokens(300, device)
    logprob, entropy = linear_logprob(hidden, weight, target, vocab_size=REAL, backend=backend)
    (d_logprob * logprob + d_entropy * entropy).sum().backward()
    expected = exact.linear_logprob(hidden, weight, target, d_logprob, d_entropy, vocab_size=REAL)[3]
    assert (main_grad - expected).norm() < 0.006 * expected.norm()
    assert not main_grad[REAL:].any()


@pytest.mark.parametrize("count", [TOKENS, 8 * TOKENS], ids=["T4096", "T32768"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_extra_memory(backend: LogprobBackend, count: int, device: torch.device) -> None:
    weight, _ = head(device)
    hidden, target, d_logprob, d_entropy = tokens(count, device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    logprob, entropy = linear_logprob(hidden, weight, target, vocab_size=REAL, backend=backend)
    assert torch.cuda.max_memory_allocated() - before < EXTRA
    torch.cuda.reset_peak_memory_stats()
    (d_logprob * logprob + d_entropy * entropy).sum().backward()
    assert hidden.grad is not None
    assert torch.cuda.max_memory_allocated() - before - hidden.grad.nbytes < EXTRA
