"""kernels.advantage: values in rational arithmetic, the same bits in any order and from numpy and Triton."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.advantage import Columns, Levels, Rules, hierarchical_advantage
from kernels.advantage.reference import moments
from tests.kernels import exact
from tests.kernels.advantage_tables import OFFICIAL, PAPER, RULES, on, random_columns, take

law = settings(derandomize=True, deadline=None)
EVERY_RULE = pytest.mark.parametrize("rules", RULES.values(), ids=RULES)


def on_triton(columns: Columns[torch.Tensor], rules: Rules) -> Levels[torch.Tensor]:
    """Programs of a size for the interpreter."""
    from kernels.advantage import triton

    return triton.hierarchical_advantage(columns, rules, triton.Launch(32, 8, 16, 2))


def assert_same_bits(found: Levels[Any], expected: Levels[Any]) -> None:
    for name in ("total", "episode", "step", "token"):
        one, other = getattr(found, name), getattr(expected, name)
        if other is None:
            assert one is None
            continue
        one = one.cpu().numpy() if isinstance(one, torch.Tensor) else one
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32), err_msg=name)


def at(levels: Levels[Any], index: np.ndarray[Any, Any]) -> Levels[Any]:
    return Levels(levels.total[index], levels.episode[index], levels.step[index], None)


@EVERY_RULE
def test_values_agree_with_rational_arithmetic(rules: Rules) -> None:
    columns = random_columns(90, seed=1)
    found = hierarchical_advantage(columns, rules)
    read = (columns.group, columns.trajectory, columns.step_group, columns.reward, columns.penalty)
    rows = list(zip(*(np.asarray(column).tolist() for column in read), strict=True))
    gamma = Fraction(rules.gamma)
    levels = exact.advantages(rows, gamma, rules.penalty == "reward", rules.unit == "rows")
    tolerance = 2e-4 if rules.single else 1e-7  # float32 itself, over a deviation
    expected = np.zeros((2, 90))
    for level, (groups, rule) in enumerate(zip(levels, (rules.episode, rules.step), strict=True)):
        how = (rule.scale, rule.epsilon, rule.leave_one_out, rule.keep_lone)
        expected[level] = [exact.relative(group, *how) for group in groups]
    np.testing.assert_allclose(found.episode, expected[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.step, expected[1], rtol=tolerance, atol=tolerance)
    total = expected[0] + rules.omega * expected[1]
    np.testing.assert_allclose(found.total, total, rtol=tolerance, atol=tolerance)
    token = np.repeat(found.total, np.diff(np.asarray(columns.token_offsets)))
    np.testing.assert_array_equal(found.token, token, strict=True)


@pytest.mark.interpret
@EVERY_RULE
def test_triton_gives_the_bits_of_numpy_in_any_order(rules: Rules, device: torch.device) -> None:
    columns = random_columns(70, seed=2)
    expected = hierarchical_advantage(columns, rules)
    assert np.count_nonzero(expected.step) > 10
    assert_same_bits(on_triton(on(device, columns), rules), expected)
    order = np.random.default_rng(0).permutation(70)
    shuffled = on_triton(on(device, take(columns, order)), rules)
    assert_same_bits(shuffled, at(expected, order))


@pytest.mark.interpret
@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_without_step_level_or_tokens(rows: int, device: torch.device) -> None:
    columns = replace(random_columns(rows, tasks=1), step_group=None, token_offsets=None)
    expected = hierarchical_advantage(columns, PAPER)
    assert not expected.step.any()
    assert expected.total.tolist() == expected.episode.tolist()
    assert_same_bits(on_triton(on(device, columns), PAPER), expected)


@pytest.mark.interpret
def test_rows_without_tokens(device: torch.device) -> None:
    columns = replace(random_columns(20), token_offsets=np.zeros(21, dtype=np.int64))
    expected = hierarchical_advantage(columns, PAPER)
    assert np.asarray(expected.token).shape == (0,)
    assert_same_bits(on_triton(on(device, columns), PAPER), expected)


@pytest.mark.interpret
def test_extremes_have_the_same_bits(device: torch.device) -> None:
    """Sums that cancel, values of one part in 1e330, negative zeros: one scale of a group holds them all."""
    rewards = [1e30, -1e30, 1e-300, 3e-300, -0.0, 0.0, 1 / 3, -1 / 7, 5e-324, 1e17]
    count = np.arange(10)
    columns = Columns(np.array(rewards), np.zeros(10), count // 5, count, np.zeros_like(count), count % 3)
    for rules in RULES.values():
        expected = hierarchical_advantage(columns, rules)
        assert np.isfinite(expected.total).all()
        assert_same_bits(on_triton(on(device, columns), rules), expected)


def test_no_rows() -> None:
    none = random_columns(1)
    none = replace(take(none, np.zeros(0, dtype=np.int64)), token_offsets=np.zeros(1, dtype=np.int64))
    for found in (hierarchical_advantage(none, PAPER), on_triton(on(torch.device("cpu"), none), PAPER)):
        every = (found.total, found.episode, found.step, found.token)
        assert [np.asarray(column).shape for column in every] == [(0,)] * 4


@pytest.mark.interpret
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -1e17])
def test_equal_rewards_give_exactly_zero(reward: float, device: torch.device) -> None:
    count = np.arange(7)
    one = np.zeros_like(count)
    columns = Columns(np.full(7, reward), np.zeros(7), one, count, one, one)
    for rules in RULES.values():
        assert not hierarchical_advantage(columns, rules).total.any()
        assert not on_triton(on(device, columns), rules).total.any()


@pytest.mark.interpret
def test_a_lone_trajectory_gets_zero_or_keeps_its_score(device: torch.device) -> None:
    columns = Columns(np.array([7.0]), np.array([0.5]), *(np.zeros((4, 1), dtype=np.int64)))
    for compute in (hierarchical_advantage, lambda c, r: on_triton(on(device, c), r)):
        assert compute(columns, PAPER).total.tolist() == [0.0]
        assert compute(columns, OFFICIAL).total.tolist() == pytest.approx([6.5 / (1 + 1e-6)], rel=1e-7)


@law
@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from(sorted(RULES)), st.randoms())
def test_order_of_rows_changes_no_bit(rows: int, seed: int, name: str, random: Random) -> None:
    columns = random_columns(rows, seed)
    order = np.array(random.sample(range(rows), rows))
    straight, shuffled = (hierarchical_advantage(c, RULES[name]) for c in (columns, take(columns, order)))
    assert_same_bits(shuffled, at(straight, order))


@law
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 3)), max_size=40))
def test_moments_agree_with_numpy(pairs: list[tuple[float, int]]) -> None:
    values = np.array([value for value, _ in pairs])
    segment = np.array([index for _, index in pairs], dtype=np.int64)
    for ddof in (0, 1):
        stats = moments(values, segment, 5, ddof)
        assert stats.count.tolist() == [np.count_nonzero(segment == index) for index in range(5)]
        for index in range(5):
            members = values[segment == index]
            mean = members.mean() if len(members) else 0.0
            deviation = members.std(ddof=ddof) if len(members) > ddof else 0.0
            np.testing.assert_allclose(stats.mean[index], mean, rtol=1e-12, atol=1e-9)
            np.testing.assert_allclose(stats.std[index], deviation, rtol=1e-7, atol=1e-9)


@law
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.randoms())
def test_moments_do_not_depend_on_order_by_a_single_bit(values: list[float], random: Random) -> None:
    one = np.zeros(len(values), dtype=np.int64)
    straight = moments(np.array(values), one, 1)
    shuffled = moments(np.array(random.sample(values, len(values))), one, 1)
    assert straight.mean.tobytes() == shuffled.mean.tobytes()
    assert straight.std.tobytes() == shuffled.std.tobytes()


def test_moments_of_identical_values_are_exact() -> None:
    for value in (0.1, 1 / 3, 9.025, -1e-300, 1e17):
        stats = moments(np.full(7, value), np.zeros(7, dtype=np.int64), 1)
        assert stats.mean[0] == value
        assert stats.std[0] == 0.0


@pytest.mark.parametrize("outlier", [0.0, 1e6])
def test_fixed_point_is_as_good_as_float64_in_large_groups(outlier: float) -> None:
    values = np.append(np.random.default_rng(0).normal(size=100_000), outlier)
    stats = moments(values, np.zeros(len(values), dtype=np.int64), 1)
    mean = math.fsum(values.tolist()) / len(values)
    deviation = math.sqrt(math.fsum(((values - mean) ** 2).tolist()) / (len(values) - 1))
    assert abs(stats.mean[0] - mean) < 1e-15 * np.abs(values).max()
    assert stats.std[0] == pytest.approx(deviation, rel=1e-12)


def test_wrong_columns_are_named() -> None:
    columns = random_columns(5)
    with pytest.raises(ValueError, match=r"reward must be float64\[5\], got float32\[5\]"):
        hierarchical_advantage(replace(columns, reward=columns.reward.astype(np.float32)), PAPER)
    with pytest.raises(ValueError, match=r"token_offsets must be int64\[6\], got int64\[5\]"):
        hierarchical_advantage(replace(columns, token_offsets=columns.group), PAPER)
    strided = torch.zeros(5, 2, dtype=torch.float64)[:, 0]
    with pytest.raises(ValueError, match="penalty must be a contiguous tensor"):
        hierarchical_advantage(replace(on(torch.device("cpu"), columns), penalty=strided), PAPER)
    with pytest.raises(ValueError, match="trajectory 0 has step 1 where step 0 was due"):
        hierarchical_advantage(replace(columns, step=columns.step + 1), PAPER)


def test_backends_are_checked_and_tensors_come_back_as_tensors() -> None:
    columns = random_columns(5)
    with pytest.raises(ValueError, match="backend must be one of auto, triton, reference, got 'cuda'"):
        hierarchical_advantage(columns, PAPER, backend="cuda")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="backend 'triton' needs torch tensors, got numpy arrays"):
        hierarchical_advantage(columns, PAPER, backend="triton")
    found = hierarchical_advantage(on(torch.device("cpu"), columns), PAPER)
    assert isinstance(found.token, torch.Tensor)
    assert_same_bits(found, hierarchical_advantage(columns, PAPER))


@pytest.mark.gpu
@EVERY_RULE
def test_409600_rows_on_the_gpu_have_the_bits_of_numpy(rules: Rules) -> None:
    columns = random_columns(409_600, tasks=2048, states=20)
    found = hierarchical_advantage(on(torch.device("cuda"), columns), rules)
    assert_same_bits(found, hierarchical_advantage(columns, rules))
