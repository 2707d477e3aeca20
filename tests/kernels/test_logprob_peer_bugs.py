"""Bugs that other fused log-prob kernels had, each a test of ours."""

from __future__ import annotations

import math

import pytest
import torch
from triton.runtime import Autotuner

from kernels.logprob import LogprobBackend, linear_logprob, triton
from tests.kernels import exact
from tests.kernels.test_logprob import agree, every, inputs, ours


@every
def test_verl_2656_log_sum_over_padding(backend: LogprobBackend, device: torch.device) -> None:
    """Padded columns, and those that fill the last tile, are in no sum: with large ones nothing changes."""
    hidden, weight, target, *upstream = inputs(backend, device, vocab=70)
    target = target.clamp(max=64)
    hidden[:, 0] = 1.0
    loud = weight.clone()
    loud[65:, 0] = 1e4
    quiet = ours(hidden, weight, target, *upstream, vocab_size=65, backend=backend)
    padded = ours(hidden, loud, target, *upstream, vocab_size=65, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(quiet, padded, strict=True))
    agree(quiet, exact.linear_logprob(hidden, weight, target, *upstream, vocab_size=65))


@every
def test_verl_2899_vocabulary_of_no_multiple_of_256(backend: LogprobBackend, device: torch.device) -> None:
    """One column beyond a tile, and one short of it; zeros behind the end would be logits of 0."""
    for vocab in (257, 255):
        hidden, weight, target, *upstream = inputs(backend, device, tokens=3, vocab=vocab)
        hidden[:, 0], weight[:, 0] = 100.0, -1.0  # next to these a logit of 0 gets all the probability
        case = (hidden, weight, target, *upstream)
        agree(ours(*case, backend=backend), exact.linear_logprob(*case), atol=2e-3)


@every
def test_verl_epilogue_maximum_started_at_0(backend: LogprobBackend, device: torch.device) -> None:
    """If all logits are far below 0, a maximum of 0 makes every exponential vanish (SkyRL #2141: NaN)."""
    hidden, weight = torch.ones(3, 16, device=device), torch.full((70, 16), -625.0, device=device)
    if backend == "triton" and device.type == "cuda":
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    target, one = torch.arange(3, device=device), torch.ones(3, device=device)
    logprob, entropy, d_hidden, _ = ours(hidden, weight, target, one, one, backend=backend)
    assert float(hidden[0].float() @ weight[0].float()) == -1e4
    assert logprob.tolist() == pytest.approx([-math.log(70)] * 3, abs=2e-3)
    assert entropy.tolist() == pytest.approx([math.log(70)] * 3, abs=1e-5)
    assert d_hidden.abs().max() < 0.05  # of terms of 625


@every
def test_verl_hidden_size_of_no_multiple_of_128(backend: LogprobBackend, device: torch.device) -> None:
    for width in (8, 33, 129):
        case = inputs(backend, device, tokens=3, width=width, vocab=40)
        agree(ours(*case, backend=backend), exact.linear_logprob(*case))


@every
def test_skyrl_2141_nan_when_logits_are_strongly_negative(
    backend: LogprobBackend, device: torch.device
) -> None:
    """One logit of each row is large, of either sign, between tiles in which all others vanish."""
    hidden, weight, target, *upstream = inputs(backend, device, tokens=4, vocab=200)
    hidden[:, 0], weight[:, 0] = torch.tensor([1.0, -1.0, 50.0, -50.0], device=device), 0.0
    weight[130, 0] = -3e3
    case = (hidden, weight, target, *upstream)
    agree(ours(*case, backend=backend), exact.linear_logprob(*case), atol=0.05)  # logits of 150,000


def test_skyrl_2141_autotuning_corrupts_an_inplace_epilogue() -> None:
    """A tuner that runs a kernel several times on its own output ruins it. Ours are tuned by a table."""
    assert not [v.name for v in triton.variants() if isinstance(v.kernel, Autotuner)]


@every
def test_bfloat16_log_sum_makes_log_probs_positive(backend: LogprobBackend, device: torch.device) -> None:
    """Label and sum are of one precision, and never above it: certain tokens have log-prob 0 at most."""
    hidden, weight, _, *upstream = (
        x.to(device) for x in exact.inputs(tokens=64, width=32, vocab=80, scale=100.0)
    )
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    best = (hidden.double() @ weight.double().T).argmax(1)
    with torch.no_grad():
        logprob, _ = linear_logprob(hidden, weight, best, backend=backend)
    expected = exact.linear_logprob(hidden, weight, best, *upstream)[0]
    assert (expected > -1e-6).sum() > 20  # the case is there
    assert logprob.max() <= 0.0
    assert (logprob - expected).abs().max() < 2e-4  # of logits near 300
    rounded = (hidden.double() @ weight.double().T).bfloat16().double().log_softmax(1)
    assert (
        rounded.gather(1, best[:, None])[:, 0] - expected
    ).abs().max() > 0.05  # what rounding logits costs


@every
def test_apple_filters_small_gradients(backend: LogprobBackend, device: torch.device) -> None:
    """Tokens of probability below 2^-12 pull as well: each one's gradient is right, and not 0."""
    hidden, weight, target, d_logprob, d_entropy = inputs(backend, device, tokens=2, vocab=100)
    hidden[:, 0], weight[:, 0] = 1.0, 0.0
    weight[:2, 0] = 16.0
    target = torch.tensor([0, 1], device=device)
    expected = exact.linear_logprob(hidden, weight, target, d_logprob, d_entropy * 0)[3]
    found = ours(hidden, weight, target, d_logprob, d_entropy * 0, backend=backend)[3]
    rare = expected[2:].norm(dim=1)
    assert rare.max() < 2.0**-12
    rounding = 1e-4 if found.dtype is torch.float32 else 1e-2
    assert ((found - expected)[2:].norm(dim=1) <= rounding * rare).all()
