"""kernels.logprob against float64: values and gradients (a split vocabulary: tests/learner)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.logprob import linear_logprob
from tests.kernels import exact


def ours(
    hidden: Tensor, weight: Tensor, target: Tensor, d_logprob: Tensor, d_entropy: Tensor, **options: Any
) -> exact.Result:
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    logprob, entropy = linear_logprob(hidden, weight, target, **options)
    assert logprob.dtype == entropy.dtype == torch.float32
    (d_logprob * logprob + d_entropy * entropy).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return logprob.detach(), entropy.detach(), hidden.grad, weight.grad


def agree(found: exact.Result, expected: exact.Result, atol: float) -> None:
    for name, one, other in zip(("logprob", "entropy", "d_hidden", "d_weight"), found, expected, strict=True):
        assert one.isfinite().all(), name
        assert (one - other).abs().max() <= atol + 2e-6 * other.abs().max(), name


TEMPERATURES = [1.0, 0.4, torch.linspace(0.2, 3.0, 7)]


@pytest.mark.parametrize("vocab_size", [None, 29, 23], ids=["whole", "exact", "padded"])
@pytest.mark.parametrize("temperature", TEMPERATURES, ids=["1", "0.4", "per-token"])
def test_values_and_gradients(temperature: float | Tensor, vocab_size: int | None) -> None:
    hidden, weight, target, *upstream = exact.inputs()
    real = vocab_size or len(weight)
    target = target.clamp(max=real - 1)
    weight[real:] *= 50  # padding would win every softmax
    case: Any = {"temperature": temperature, "vocab_size": vocab_size}
    found = ours(hidden, weight, target, *upstream, **case)
    agree(found, exact.linear_logprob(hidden, weight, target, *upstream, **case), atol=5e-6)
    assert not found[3][real:].any()


@pytest.mark.parametrize("which", ["logprob", "entropy"])
def test_each_output_has_its_own_gradient(which: str) -> None:
    hidden, weight, target, d_logprob, d_entropy = exact.inputs(seed=1)
    upstream = (d_logprob, d_entropy * 0) if which == "logprob" else (d_logprob * 0, d_entropy)
    found = ours(hidden, weight, target, *upstream)
    assert found[2].abs().max() > 0.01
    agree(found, exact.linear_logprob(hidden, weight, target, *upstream), atol=2e-6)


def test_one_huge_logit() -> None:
    """exp of it overflows; its token is certain, all others cost its size, and certainty has no entropy."""
    hidden, weight, target, *upstream = exact.inputs()
    hidden[:, 0], weight[:, 0] = 1.0, 0.0
    weight[5, 0] = 1e4
    target[1:3] = 5
    found = ours(hidden, weight, target, *upstream)
    expected = exact.linear_logprob(hidden, weight, target, *upstream)
    assert found[0][1:3].tolist() == [0.0, 0.0]
    assert found[0][0] == pytest.approx(-1e4, rel=1e-3)
    assert found[1].abs().max() == 0.0
    agree(found, expected, atol=2e-3)  # an fp32 logit near 1e4 is good to 1e-3


def test_all_logits_far_below_zero() -> None:
    """exp of each underflows; a uniform softmax has log-prob -log V and entropy log V all the same."""
    hidden, weight = torch.ones(3, 4), torch.full((8, 4), -2500.0)
    logprob, entropy, d_hidden, _ = ours(hidden, weight, torch.arange(3), torch.ones(3), torch.ones(3))
    assert logprob.tolist() == pytest.approx([-math.log(8)] * 3, abs=1e-6)
    assert entropy.tolist() == pytest.approx([math.log(8)] * 3, abs=1e-6)
    assert d_hidden.abs().max() < 1e-3  # of terms of 2500


def test_bfloat16_inputs_keep_their_gradients_type() -> None:
    hidden, weight, target, *upstream = exact.inputs()
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    found = ours(hidden, weight, target, *upstream)
    expected = exact.linear_logprob(hidden, weight, target, *upstream)
    assert found[2].dtype == found[3].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() < 0.02 * other.abs().max()


def test_no_tokens() -> None:
    hidden, weight, target, *upstream = exact.inputs(tokens=7)
    found = ours(hidden[:0], weight, target[:0], upstream[0][:0], upstream[1][:0])
    assert found[0].shape == found[1].shape == (0,)
    assert not found[3].any()
