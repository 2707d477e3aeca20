from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gigpo_mega.algorithms.objective import (
    Aggregation,
    aggregation,
    importance_weights,
    policy_loss,
    sequence_log_ratio,
)
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
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "surrogate_sum": surrogate,
            "clipped_tokens": 1.0,
            "dual_clipped_tokens": 1.0,
            "approx_kl_sum": -math.log(2.0) - math.log(5.0),
            "reference_kl_sum": k3,
            "entropy_sum": 1.75,
        }
    )
    assert not any(value.requires_grad for value in metrics.values())


def test_each_clip_is_the_configured_one() -> None:
    """Equal in the default configuration, clip_low in the place of clip_high went unnoticed."""
    cfg = ObjectiveConfig(clip_low=0.1, clip_high=0.3, dual_clip=2.0, kl_coef=0.0, entropy_coef=0.0)
    logprob, old = logs(0.75, 0.25, 0.75), logs(0.5, 0.5, 0.25).detach()  # ratios 1.5, 0.5, 3
    for advantage, expected in (((1, 0, 0), -1.3), ((0, -1, 0), 0.9), ((0, 0, -1), 2.0)):
        loss, _ = policy_loss(logprob, old, numbers(*advantage), numbers(1, 1, 1), cfg)
        assert loss.item() == pytest.approx(expected)


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
    assert metrics["entropy_sum"].item() == 0.5
    assert metrics["approx_kl_sum"].item() == metrics["reference_kl_sum"].item() == 0.0


def test_a_weighted_term_needs_its_tensor() -> None:
    one = numbers(1.0)
    with pytest.raises(ValueError, match=r"kl_coef 0\.01 needs ref_logprob"):
        policy_loss(one, one, one, one, ObjectiveConfig(entropy_coef=0.0))
    with pytest.raises(ValueError, match=r"entropy_coef 0\.001 needs entropy"):
        policy_loss(one, one, one, one, ObjectiveConfig(kl_coef=0.0))


def test_terms_without_weight_are_still_measured() -> None:
    one, half = logs(1.0), logs(0.5).detach()
    loss, metrics = policy_loss(one, one.detach(), numbers(2.0), numbers(1.0), PLAIN, half, numbers(0.7))
    assert loss.item() == -2.0
    assert metrics["reference_kl_sum"].item() == pytest.approx(0.5 + math.log(2.0) - 1.0)
    assert metrics["entropy_sum"].item() == pytest.approx(0.7)


def sequence_loss(
    logprob: Tensor, old: Tensor, weight: Tensor, lengths: list[int], advantage: float = -1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the sequence ratio if nothing is clipped from above."""
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
    assert metrics["approx_kl_sum"].item() == pytest.approx(-math.log(5.0))  # of the tokens, as ever


def test_sequence_ratio_does_not_grow_with_the_response() -> None:
    """A sum over the tokens equals the mean only for rows whose ratios cancel or have one token."""
    old = logs(0.4, 0.1, 0.2).detach()
    ratio = sequence_log_ratio(logs(0.8, 0.4, 0.6).detach(), old, numbers(1, 1, 1), torch.tensor([2, 1]))
    assert ratio.tolist() == pytest.approx([math.log(8.0) / 2, math.log(8.0) / 2, math.log(3.0)])


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
    ("new", "old", "advantage", "weight", "clipped"),
    [
        (0.55, 0.5, 2.0, 1.1, False),
        (0.75, 0.5, 2.0, 1.28, True),  # above 1 + clip_high, and yet it has a gradient
        (0.25, 0.5, 2.0, 0.8, True),  # below 1 - clip_low, on either side
        (0.25, 0.5, -2.0, 0.8, True),
        (0.8, 0.2, -2.0, 1.28, True),
        (0.8, 0.2, 0.0, 1.28, True),
    ],
)
def test_cispo_by_hand(new: float, old: float, advantage: float, weight: float, clipped: bool) -> None:
    cfg = replace(PLAIN, surrogate="cispo", clip_low=0.2, clip_high=0.28)
    logprob = logs(new)
    loss, metrics = policy_loss(logprob, logs(old).detach(), numbers(advantage), numbers(3.0), cfg)
    assert loss.item() == pytest.approx(-3.0 * advantage * weight * math.log(new), rel=1e-12)
    assert gradient(loss, logprob) == pytest.approx([-3.0 * advantage * weight], rel=1e-12)
    assert (metrics["clipped_tokens"].item(), metrics["dual_clipped_tokens"].item()) == (clipped, 0)


def test_cispo_may_weigh_by_the_ratio_of_the_sequence() -> None:
    cfg = replace(PLAIN, surrogate="cispo", ratio="sequence", clip_high=9.0)
    logprob, old = logs(0.8, 0.2, 0.5), logs(0.1, 0.1, 0.25).detach()  # of the rows: (8 * 2)^(1/2) = 4, 2
    loss, _ = policy_loss(
        logprob, old, numbers(1, 1, -1), numbers(1, 1, 1), cfg, lengths=torch.tensor([2, 1])
    )
    assert gradient(loss, logprob) == pytest.approx([-4.0, -4.0, 2.0])
    assert loss.item() == pytest.approx(-4 * math.log(0.8) - 4 * math.log(0.2) + 2 * math.log(0.5))


def weights_of(
    old: Tensor, sampled: Tensor, weight: Tensor, lengths: list[int], **options: Any
) -> list[float]:
    cfg = ObjectiveConfig(**options)
    return importance_weights(old, sampled, weight, torch.tensor(lengths), cfg)[0].tolist()


def test_importance_weights_by_hand() -> None:
    old, sampled = logs(0.6, 0.2, 0.5, 0.1).detach(), logs(0.4, 0.8, 0.1, 0.5).detach()
    ones = torch.ones_like(old)  # ratios 1.5, 0.25, 5, 0.2; of the rows 0.375, 1
    assert weights_of(old, sampled, ones, [2, 2], rollout_is="token") == pytest.approx([1.5, 0.25, 2.0, 0.2])
    bounds: dict[str, Any] = {"rollout_is_low": 0.3, "rollout_is_high": 1.25}
    found = weights_of(old, sampled, ones, [2, 2], rollout_is="token", **bounds)
    assert found == pytest.approx([1.25, 0.3, 1.25, 0.3])
    found = weights_of(old, sampled, ones, [2, 0, 2], rollout_is="sequence")
    assert found == pytest.approx([0.375, 0.375, 1.0, 1.0])
    found = weights_of(old, sampled, ones, [1, 3], rollout_is="sequence", rollout_is_low=0.5)
    assert found == pytest.approx([1.5, 0.5, 0.5, 0.5])  # 0.25 * 5 * 0.2 = 0.25


def test_a_response_out_of_bounds_is_not_learned_from_and_the_others_are_as_ever() -> None:
    old, sampled = logs(0.5, 0.4, 0.3, 0.9).detach(), logs(0.4, 0.5, 0.1, 0.9).detach()  # means 1, 3, 1
    bounds: dict[str, Any] = {"rollout_mask_low": 0.99, "rollout_mask_high": 1.01}
    cfg = ObjectiveConfig(kl_coef=0.1, entropy_coef=0.01, dual_clip=None, **bounds)
    lengths, weight = torch.tensor([2, 1, 1]), numbers(1, 1, 1, 0)

    def terms(weight: Tensor, cfg: ObjectiveConfig) -> tuple[Tensor, list[float], dict[str, Tensor]]:
        logprob, entropy = logs(0.6, 0.3, 0.2, 0.8), numbers(0.5, 0.6, 0.7, 0.8)
        ref, advantage = logs(0.3, 0.3, 0.3, 0.3).detach(), numbers(1, -1, 2, 3)
        loss, metrics = policy_loss(
            logprob, old, advantage, weight, cfg, ref, entropy, lengths, sampled_logprob=sampled
        )
        return loss, gradient(loss, logprob), metrics

    loss, slope, metrics = terms(weight, cfg)
    without, slope_without, _ = terms(numbers(1, 1, 0, 0), replace(cfg, **dict.fromkeys(bounds)))
    assert loss.item() == without.item()
    assert slope == slope_without
    assert slope[2] == 0
    assert metrics["rollout_masked"].item() == 1.0  # the token of no weight does not count
    assert terms(weight, replace(cfg, rollout_mask_high=None))[2]["rollout_masked"].item() == 0.0
    assert terms(weight, replace(cfg, rollout_mask_low=None))[1][2] == 0


def test_importance_weights_weigh_the_surrogate_and_nothing_else() -> None:
    logprob = logs(0.5, 0.5, 0.25)
    old, sampled = logs(0.25, 0.5, 0.25).detach(), logs(0.1, 0.8, 0.25).detach()
    ref, entropy = logs(0.25, 0.25, 0.25).detach(), numbers(0.5, 0.5, 0.5)
    cfg = ObjectiveConfig(kl_coef=0.1, entropy_coef=0.01, rollout_is="token", clip_high=0.2)
    tokens = (logprob, old, numbers(1, -1, 2), numbers(1, 1, 1), cfg, ref, entropy)
    loss, metrics = policy_loss(*tokens, lengths=torch.tensor([3]), sampled_logprob=sampled)
    surrogate = -2.0 * 1.2 + 0.625 - 2.0  # weights 2.5, at most 2; 0.625; 1. The first ratio is clipped
    k3 = 0.5 - math.log(0.5) - 1.0
    assert metrics["surrogate_sum"].item() == pytest.approx(surrogate)
    assert loss.item() == pytest.approx(surrogate + 0.1 * 2 * k3 - 0.01 * 1.5)
    plain, _ = policy_loss(*tokens[:4], PLAIN)
    assert gradient(loss, logprob) == pytest.approx([0.1 * 0.5, 0.625 + 0.1 * 0.5, -2.0])
    assert gradient(plain, logprob) == pytest.approx([0.0, 1.0, -2.0])
    assert metrics["rollout_is_sum"].item() == pytest.approx(2.0 + 0.625 + 1.0)
    assert metrics["rollout_is_truncated"].item() == 1.0


def test_importance_weights_have_no_gradient_though_the_old_policy_is_the_present_one() -> None:
    cfg = replace(PLAIN, rollout_is="sequence")
    logprob = logs(0.5, 0.25)
    loss, _ = policy_loss(
        logprob, logprob, numbers(1, 1), numbers(1, 1), cfg,
        lengths=torch.tensor([2]), sampled_logprob=logs(0.4, 0.25).detach(),
    )  # fmt: skip
    assert gradient(loss, logprob) == pytest.approx([0.0, 0.0])  # the ratio is always 1 as well
    loss, _ = policy_loss(
        logprob, logprob.detach(), numbers(1, 1), numbers(1, 1), cfg,
        lengths=torch.tensor([2]), sampled_logprob=logs(0.4, 0.25).detach(),
    )  # fmt: skip
    assert gradient(loss, logprob) == pytest.approx([-1.25, -1.25])


def test_without_a_mismatch_the_correction_changes_no_bit() -> None:
    logprob, old = logs(0.5, 0.4, 0.3), logs(0.45, 0.2, 0.6).detach()
    tokens = (logprob, old, numbers(1.0, -0.5, -2.0), numbers(1, 0.5, 2))
    plain, _ = policy_loss(*tokens, PLAIN)
    slopes = gradient(plain, logprob)
    for level in ("token", "sequence"):
        cfg = replace(PLAIN, rollout_is=level)
        loss, metrics = policy_loss(*tokens, cfg, lengths=torch.tensor([1, 2]), sampled_logprob=old)
        assert loss.item() == plain.item()
        assert gradient(loss, logprob) == slopes
        assert (metrics["rollout_is_sum"].item(), metrics["rollout_is_truncated"].item()) == (3.0, 0.0)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_padding_has_no_part_in_importance_weights(level: Any, garbage: float) -> None:
    cfg = replace(PLAIN, rollout_is=level)
    logprob = torch.tensor([-1.0, garbage, -1.0], requires_grad=True)
    sampled = torch.tensor([-1.5, garbage, -1.0])
    loss, metrics = policy_loss(
        logprob, logprob.detach(), torch.tensor([1.0, garbage, 1.0]), torch.tensor([1.0, 0.0, 1.0]), cfg,
        lengths=torch.tensor([2, 1]), sampled_logprob=sampled,
    )  # fmt: skip
    assert loss.item() == pytest.approx(-math.exp(0.5) - 1.0)
    assert gradient(loss, logprob) == pytest.approx([-math.exp(0.5), 0.0, -1.0])
    assert metrics["rollout_is_sum"].item() == pytest.approx(math.exp(0.5) + 1.0)


def test_a_ratio_that_overflows_is_truncated() -> None:
    old, sampled = torch.tensor([0.0, -200.0]), torch.tensor([-200.0, 0.0])
    assert weights_of(old, sampled, torch.ones(2), [1, 1], rollout_is="token") == [2.0, 0.0]


def test_importance_weights_need_what_the_engine_sampled() -> None:
    one, cfg = numbers(1.0), replace(PLAIN, rollout_is="token")
    incomplete: list[dict[str, Any]] = [{}, {"lengths": torch.tensor([1])}, {"sampled_logprob": one}]
    for options in incomplete:
        with pytest.raises(ValueError, match=r"objective\.rollout_is and rollout_mask need the log-prob"):
            policy_loss(one, one, one, one, cfg, **options)


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
