from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gigpo_mega.algorithms.objective import Aggregation, aggregation, policy_loss, sequence_log_ratio
from gigpo_mega.config import ObjectiveConfig
from kernels.policy_loss.reference import clipped_surrogate, kl_divergence

PLAIN = ObjectiveConfig(kl_coef=0.0, entropy_coef=0.0)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logs(*values: float) -> Tensor:
    return numbers(*values).log().requires_grad_()


def gradient(loss: Tensor, of: Tensor) -> list[float]:
    [slope] = torch.autograd.grad(loss.sum(), of)
    return slope.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped", "bounded"),
    [
        (1.1, 2.0, -2.2, -2.2, False, False),
        (1.5, 2.0, -2.56, 0.0, True, False),  # above 1 + clip_high = 1.28
        (0.5, 2.0, -1.0, -1.0, False, False),  # the pessimistic side isn't clipped
        (0.5, -2.0, 1.6, 0.0, True, False),  # below 1 - clip_low = 0.8
        (1.5, -2.0, 3.0, 3.0, False, False),
        (4.0, -2.0, 6.0, 0.0, False, True),  # beyond dual_clip = 3
        (4.0, 0.0, 0.0, 0.0, False, False),
    ],
)
def test_surrogate_by_hand(
    ratio: float, advantage: float, loss: float, slope: float, clipped: bool, bounded: bool
) -> None:
    log_ratio = logs(ratio)
    actual, was_clipped, was_bounded = clipped_surrogate(log_ratio, numbers(advantage), 0.2, 0.28, 3.0)
    assert actual.item() == pytest.approx(loss, rel=1e-12)
    assert gradient(actual, log_ratio) == pytest.approx([slope], rel=1e-12)
    assert (was_clipped.item(), was_bounded.item()) == (clipped, bounded)


def test_without_dual_clip_negative_advantages_are_not_bounded() -> None:
    loss, _, bounded = clipped_surrogate(logs(4.0), numbers(-2.0), 0.2, 0.2, None)
    assert loss.item() == pytest.approx(8.0)
    assert not bounded.item()


def test_an_overflowing_ratio_has_a_zero_gradient_not_nan() -> None:
    log_ratio = torch.tensor([200.0, 200.0], requires_grad=True)
    loss, _, _ = clipped_surrogate(log_ratio, torch.tensor([-1.0, 1.0]), 0.2, 0.2, 3.0)
    assert loss.tolist() == pytest.approx([3.0, -1.2])
    assert gradient(loss, log_ratio) == [0.0, 0.0]


def test_kl_estimates_by_hand() -> None:
    logprob, ref = numbers(-1.0, -2.0), numbers(-1.5, -1.0)
    assert kl_divergence(logprob, ref, "k1").tolist() == [0.5, -1.0]
    assert kl_divergence(logprob, ref, "abs").tolist() == [0.5, 1.0]
    assert kl_divergence(logprob, ref, "k2").tolist() == [0.125, 0.5]
    expected = [math.exp(-0.5) + 0.5 - 1.0, math.e - 1.0 - 1.0]
    assert kl_divergence(logprob, ref, "k3").tolist() == pytest.approx(expected, rel=1e-12)


def test_k3_is_bounded_by_10_with_a_zero_gradient() -> None:
    logprob = torch.tensor([-200.0, -3.0, 0.0], requires_grad=True)
    k3 = kl_divergence(logprob, torch.tensor([0.0, 0.0, -200.0]), "k3")
    assert k3.tolist() == [10.0, 10.0, 10.0]  # e^3 - 4 = 16 in the middle
    assert gradient(k3, logprob) == [0.0, 0.0, 0.0]


def test_k3_is_unbiased_and_k1_agrees_in_the_mean() -> None:
    policy, ref = numbers(0.1, 0.2, 0.7), numbers(0.3, 0.3, 0.4)
    exact = (policy * (policy / ref).log()).sum().item()
    for kind in ("k1", "k3"):
        assert (policy * kl_divergence(policy.log(), ref.log(), kind)).sum().item() == pytest.approx(exact)


def test_loss_and_metrics_are_sums_by_hand() -> None:
    logprob = logs(0.5, 0.5, 0.5, 0.25)
    old = logs(0.25, 0.5, 0.1, 0.25).detach()  # ratios 2, 1, 5, 1
    ref = logs(0.5, 0.25, 0.5, 0.25).detach()
    advantage, weight, entropy = numbers(1, 1, -1, 9), numbers(1, 2, 1, 0), numbers(0.5, 0.25, 1, 7)
    cfg = ObjectiveConfig(kl_coef=0.1, entropy_coef=0.01)
    loss, metrics = policy_loss(logprob, old, advantage, weight, cfg, ref, entropy)
    k3 = 0.5 - math.log(0.5) - 1.0
    surrogate = -1.2 - 2.0 + 3.0
    assert loss.item() == pytest.approx(surrogate + 0.1 * 2 * k3 - 0.01 * (0.5 + 2 * 0.25 + 1.0))
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx({
        "policy_loss": surrogate,
        "clip_fraction": 1.0,
        "dual_clip_fraction": 1.0,
        "approx_kl": -math.log(2.0) - math.log(5.0),
        "reference_kl": k3,
        "entropy": 1.75,
    })
    assert not any(value.requires_grad for value in metrics.values())


def test_splitting_a_batch_changes_neither_loss_nor_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(6, 64, generator=generator, dtype=torch.float64)
    logprob, old, ref = columns[:3].mul(0.3)
    advantage, weight, entropy = columns[3], (columns[4] > -0.5).double(), columns[5].abs()
    logprob.requires_grad_()

    def loss(part: slice) -> Tensor:
        tokens = (logprob[part], old[part], advantage[part], weight[part])
        return policy_loss(*tokens, ObjectiveConfig(), ref[part], entropy[part])[0]

    parts = loss(slice(0, 10)) + loss(slice(10, 11)) + loss(slice(11, 64))
    assert parts.item() == pytest.approx(loss(slice(None)).item(), rel=1e-12)
    assert gradient(parts, logprob) == pytest.approx(gradient(loss(slice(None)), logprob), rel=1e-12)


def test_gradient_agrees_with_finite_differences() -> None:
    logprob, entropy = logs(0.5, 0.4, 0.3, 0.6), numbers(0.3, 0.2, 0.5, 0.1).requires_grad_()
    old, ref = logs(0.45, 0.2, 0.2, 0.5).detach(), logs(0.4, 0.6, 0.3, 0.2).detach()
    advantage, weight = numbers(1.0, -0.5, -2.0, 0.7), numbers(1, 0.5, 2, 0)
    cfg = ObjectiveConfig(kl_coef=0.1, entropy_coef=0.05)

    def loss(logprob: Tensor, entropy: Tensor) -> Tensor:
        return policy_loss(logprob, old, advantage, weight, cfg, ref, entropy)[0]

    assert torch.autograd.gradcheck(loss, (logprob, entropy), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_padding_may_hold_anything(garbage: float) -> None:
    def column(value: float) -> Tensor:
        return torch.tensor([value, garbage], requires_grad=True)

    logprob, old, ref, entropy = column(-1.0), column(-1.0), column(-1.0), column(0.5)
    advantage, weight = torch.tensor([1.0, garbage]), torch.tensor([1.0, 0.0])
    loss, metrics = policy_loss(logprob, old, advantage, weight, ObjectiveConfig(), ref, entropy)
    assert loss.item() == pytest.approx(-1.0 - 0.001 * 0.5)
    assert gradient(loss, logprob) == [-1.0, 0.0]
    assert metrics["entropy"].item() == 0.5
    assert metrics["approx_kl"].item() == metrics["reference_kl"].item() == 0.0


def test_a_weighted_term_needs_its_tensor() -> None:
    one = numbers(1.0)
    with pytest.raises(ValueError, match=r"objective\.kl_coef 0\.01 needs a reference policy"):
        policy_loss(one, one, one, one, ObjectiveConfig(entropy_coef=0.0))
    with pytest.raises(ValueError, match=r"objective\.entropy_coef 0\.001 needs entropy"):
        policy_loss(one, one, one, one, ObjectiveConfig(kl_coef=0.0))


def test_terms_without_weight_are_still_measured() -> None:
    one, half = logs(1.0), logs(0.5).detach()
    loss, metrics = policy_loss(one, one.detach(), numbers(2.0), numbers(1.0), PLAIN, half, numbers(0.7))
    assert loss.item() == -2.0
    assert metrics["reference_kl"].item() == pytest.approx(0.5 + math.log(2.0) - 1.0)
    assert metrics["entropy"].item() == pytest.approx(0.7)


def sequence_loss(
    logprob: Tensor, old: Tensor, weight: Tensor, lengths: list[int], advantage: float = -1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the sequence ratio where nothing is clipped from above."""
    cfg = ObjectiveConfig(kl_coef=0.0, entropy_coef=0.0, dual_clip=None, ratio="sequence")
    spread = torch.full_like(old, advantage)
    return policy_loss(logprob, old, spread, weight, cfg, lengths=torch.tensor(lengths))


def test_sequence_ratio_is_the_row_s_geometric_mean_with_token_gradients() -> None:
    logprob = logs(0.8, 0.2, 0.5, 0.9)
    old = logs(0.4, 0.4, 0.1, 0.1).detach()
    weight, lengths = numbers(1, 1, 1, 0), [2, 0, 2]
    log_ratio = sequence_log_ratio(logprob.detach(), old, weight, torch.tensor(lengths))
    assert log_ratio.tolist() == pytest.approx([0.0, 0.0, math.log(5.0), math.log(5.0)], abs=1e-12)
    loss, metrics = sequence_loss(logprob, old, weight, lengths)
    assert loss.item() == pytest.approx(1.0 + 1.0 + 5.0)
    assert gradient(loss, logprob) == pytest.approx([1.0, 1.0, 5.0, 0.0])
    assert metrics["approx_kl"].item() == pytest.approx(-math.log(5.0))  # of the tokens, as ever


def test_sequence_ratio_is_at_most_e_to_the_10() -> None:
    logprob = torch.tensor([0.0, 0.0], requires_grad=True)
    loss, _ = sequence_loss(logprob, torch.tensor([-30.0, -20.0]), torch.ones(2), [2])
    assert loss.item() == pytest.approx(2 * math.exp(10.0), rel=1e-6)
    assert gradient(loss, logprob) == [0.0, 0.0]


def test_sequence_ratio_needs_the_rows() -> None:
    one = numbers(1.0)
    with pytest.raises(ValueError, match=r"objective\.ratio sequence needs the rows' lengths"):
        policy_loss(one, one, one, one, ObjectiveConfig(kl_coef=0.0, entropy_coef=0.0, ratio="sequence"))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", (1 + 2 + 3 + 6) / 4),
        ("seq-mean-token-sum", ((1 + 2 + 3) + 6) / 3),  # the third row has no tokens and still counts
        ("seq-mean-token-mean", ((1 + 2 + 3) / 3 + 6) / 3),
        ("seq-mean-token-sum-norm", ((1 + 2 + 3) / 5 + 6 / 5) / 3),
    ],
)
def test_aggregation_by_hand(mode: Aggregation, expected: float) -> None:
    loss, lengths = np.array([1.0, 2.0, 3.0, 6.0]), np.array([3, 1, 0])
    weight, count = aggregation(mode, lengths, horizon=5)
    assert (loss * weight).sum() / count == pytest.approx(expected)
    pieces = [aggregation(mode, lengths[part], horizon=5) for part in (slice(1), slice(1, 3))]
    assert np.concatenate([w for w, _ in pieces]) == pytest.approx(weight)
    assert sum(c for _, c in pieces) == count
