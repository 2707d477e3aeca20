"""The log-prob operation in float64 with torch's own log-softmax: what kernels are measured against."""

from __future__ import annotations

import torch
from torch import Tensor

Result = tuple[Tensor, Tensor, Tensor, Tensor]


def linear_logprob(
    hidden: Tensor, weight: Tensor, target: Tensor, d_logprob: Tensor, d_entropy: Tensor,
    *, temperature: float | Tensor = 1.0, vocab_size: int | None = None,
) -> Result:  # fmt: skip
    """(log-prob [T], entropy [T], gradient of hidden, gradient of weight), all float64.

    The gradients are those of (d_logprob * log-prob + d_entropy * entropy).sum().
    """
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = hidden @ weight.T
    logits = logits / (temperature.double()[:, None] if isinstance(temperature, Tensor) else temperature)
    log_probability = logits[:, :vocab_size].log_softmax(1)
    logprob = log_probability.gather(1, target[:, None])[:, 0]
    entropy = -(log_probability.exp() * log_probability).sum(1)
    (d_logprob * logprob + d_entropy * entropy).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return logprob.detach(), entropy.detach(), hidden.grad, weight.grad


def inputs(
    tokens: int = 7, width: int = 16, vocab: int = 29, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random (hidden, weight, target, d_logprob, d_entropy) in float32; targets reach both ends."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator) * scale
    weight = torch.randn(vocab, width, generator=generator) / width**0.5
    target = torch.randint(0, vocab, (tokens,), generator=generator)
    target[0], target[-1] = 0, vocab - 1
    d_logprob, d_entropy = torch.randn(2, tokens, generator=generator)
    return hidden, weight, target, d_logprob, d_entropy
