"""kernels.advantage: values in rational arithmetic, the same bits in any order and from numpy and Triton."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.advantage import Rule, relative, returns
from kernels.advantage.reference import moments
from tests.kernels import exact
from tests.kernels.advantage_tables import (
    OFFICIAL,
    PAPER,
    RULES,
    AnchoredSteps,
    Levels,
    Rules,
    levels,
    on,
    random_steps,
    take,
)

EVERY_RULE = pytest.mark.parametrize("rules", RULES.values(), ids=RULES)


def on_triton(steps: AnchoredSteps, rules: Rules) -> Levels:
    """Programs of a size for the interpreter."""
    from kernels.advantage import triton

    launch = triton.Launch(32, 8)
    return levels(
        steps, rules, partial(triton.returns, launch=launch), partial(triton.relative, launch=launch)
    )


def assert_same_bits(found: Levels, expected: Levels) -> None:
    for one, other, name in zip(found, expected, ("task", "anchor"), strict=True):
        one = one.cpu().numpy() if isinstance(one, torch.Tensor) else one
        assert one.dtype == other.dtype == np.float64
        np.testing.assert_array_equal(one.view(np.uint64), other.view(np.uint64), err_msg=name)


def at(found: Levels, index: np.ndarray[Any, Any]) -> Levels:
    return found[0][index], found[1][index]


@EVERY_RULE
def test_values_agree_with_rational_arithmetic(rules: Rules) -> None:
    steps = random_steps(90, seed=1)
    found = levels(steps, rules)
    read = (steps.group, steps.trajectory, steps.anchor[:, 1], steps.reward, steps.penalty)
    rows = list(zip(*(np.asarray(column).tolist() for column in read), strict=True))
    expected = exact.advantages(rows, Fraction(rules.gamma), rules.penalty == "reward", rules.by_row)
    tolerance = 2e-4 if rules.float32 else 1e-7  # float32 itself, over a deviation
    for values, groups, rule in zip(found, expected, (rules.task, rules.anchor), strict=True):
        how = (rule.scale, rule.epsilon, rule.ddof, rule.leave_one_out, rule.keep_lone)
        truth = [exact.relative(group, *how) for group in groups]
        np.testing.assert_allclose(values, truth, rtol=tolerance, atol=tolerance)


@pytest.mark.interpret
@EVERY_RULE
def test_triton_gives_the_bits_of_numpy_in_any_order(rules: Rules, device: torch.device) -> None:
    steps = random_steps(70, seed=2)
    expected = levels(steps, rules)
    assert np.count_nonzero(expected[1]) > 10
    assert_same_bits(on_triton(on(device, steps), rules), expected)
    order = np.random.default_rng(0).permutation(70)
    shuffled = on_triton(on(device, take(steps, order)), rules)
    assert_same_bits(shuffled, at(expected, order))


@pytest.mark.interpret
@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows(rows: int, device: torch.device) -> None:
    steps = random_steps(rows, tasks=1)
    assert_same_bits(on_triton(on(device, steps), PAPER), levels(steps, PAPER))


@pytest.mark.interpret
def test_public_functions_compute_where_the_columns_are(device: torch.device) -> None:
    steps = random_steps(20)
    found = levels(on(device, steps), PAPER)
    assert [level.device.type for level in found] == [device.type] * 2
    assert_same_bits(found, levels(steps, PAPER))


@pytest.mark.interpret
def test_extremes_have_the_same_bits(device: torch.device) -> None:
    """Sums that cancel, values of one part in 1e330, negative zeros: one scale of a group holds them all."""
    rewards = [1e30, -1e30, 1e-300, 3e-300, -0.0, 0.0, 1 / 3, -1 / 7, 5e-324, 1e17]
    count = np.arange(10)
    anchor = np.stack([count % 3, count % 3], axis=1)
    steps = AnchoredSteps(np.array(rewards), np.zeros(10), count // 5, count, np.zeros_like(count), anchor)
    for rules in RULES.values():
        expected = levels(steps, rules)
        assert np.isfinite(expected).all()
        assert_same_bits(on_triton(on(device, steps), rules), expected)


def test_no_rows() -> None:
    none = take(random_steps(1), np.zeros(0, dtype=np.int64))
    for found in (levels(none, PAPER), on_triton(on(torch.device("cpu"), none), PAPER)):
        assert [tuple(level.shape) for level in found] == [(0,), (0,)]


@pytest.mark.interpret
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -1e17])
def test_equal_rewards_give_exactly_zero(reward: float, device: torch.device) -> None:
    count = np.arange(7)
    one = np.zeros_like(count)
    steps = AnchoredSteps(np.full(7, reward), np.zeros(7), one, count, one, np.zeros((7, 2), dtype=np.int64))
    for rules in RULES.values():
        for found in (levels(steps, rules), on_triton(on(device, steps), rules)):
            assert not any(level.any() for level in found)


@pytest.mark.interpret
def test_a_lone_trajectory_gets_zero_or_keeps_its_score(device: torch.device) -> None:
    zero = np.zeros(1, dtype=np.int64)
    steps = AnchoredSteps(
        np.array([7.0]), np.array([0.5]), zero, zero, zero, np.zeros((1, 2), dtype=np.int64)
    )
    for compute in (levels, lambda s, r: on_triton(on(device, s), r)):
        assert [level.tolist() for level in compute(steps, PAPER)] == [[0.0], [0.0]]
        task, anchor = compute(steps, OFFICIAL)
        assert task.tolist() == pytest.approx([6.5 / (1 + 1e-6)], rel=1e-7)
        assert anchor.tolist() == [0.0]


@pytest.mark.interpret
@EVERY_RULE
def test_a_group_without_members_has_mean_and_deviation_zero(rules: Rules, device: torch.device) -> None:
    """Numpy said so, Triton NaN: values stay, over epsilon if they are scaled; there are no others' means."""
    from kernels.advantage import triton

    values, group = np.array([3.0, -0.5, 4.0, 7.0]), np.array([0, 1, 0, 1])
    member = np.array([True, False, True, False])
    for rule in (rules.task, rules.anchor):
        expected = relative(values, group, rule, member)
        factor = 0.0 if rule.leave_one_out else 1.0 / rule.epsilon if rule.scale else 1.0
        np.testing.assert_allclose(expected[[1, 3]], [-0.5 * factor, 7.0 * factor], rtol=1e-15)
        values_, group_, member_ = (torch.from_numpy(c).to(device) for c in (values, group, member))
        found = triton.relative(values_, group_, rule, member_, triton.Launch(32, 8))
        np.testing.assert_array_equal(found.cpu().numpy().view(np.uint64), expected.view(np.uint64))


@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from(sorted(RULES)), st.randoms())
def test_order_of_rows_changes_no_bit(rows: int, seed: int, name: str, random: Random) -> None:
    steps = random_steps(rows, seed)
    order = np.array(random.sample(range(rows), rows))
    straight, shuffled = (levels(s, RULES[name]) for s in (steps, take(steps, order)))
    assert_same_bits(shuffled, at(straight, order))


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
    steps = random_steps(5)
    with pytest.raises(ValueError, match=r"reward must be float64\[5\], got float32\[5\]"):
        returns(replace(steps, reward=steps.reward.astype(np.float32)), 0.95)
    strided = torch.zeros(5, 2, dtype=torch.float64)[:, 0]
    with pytest.raises(ValueError, match="penalty must be a contiguous tensor"):
        returns(replace(on(torch.device("cpu"), steps), penalty=strided), 0.95)
    with pytest.raises(ValueError, match=r"group must be int64\[5\], got int64\[4\]"):
        relative(steps.reward, steps.group[1:], Rule())
    with pytest.raises(ValueError, match=r"member must be bool\[5\], got int64\[5\]"):
        relative(steps.reward, steps.group, Rule(), steps.step)


@pytest.mark.interpret
def test_a_step_that_is_missing_or_doubled_is_named(device: torch.device) -> None:
    count, zero = np.arange(3), np.zeros(3, dtype=np.int64)
    for step, said in (
        (count + 1, "trajectory 0 has step 1 where step 0 was due"),
        (np.array([0, 2, 1]) * 2, "trajectory 0 has step 2 where step 1 was due"),
        (np.array([0, 1, 1]), "trajectory 0 has step 1 where step 2 was due"),
    ):
        steps = AnchoredSteps(np.zeros(3), np.zeros(3), zero, zero, step, np.zeros((3, 2), dtype=np.int64))
        for table in (steps, on(device, steps)):
            with pytest.raises(ValueError, match=said):
                levels(table, PAPER)


def test_tensors_on_the_host_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="Triton needs CUDA tensors, got one on cpu: pass numpy arrays"):
        returns(on(torch.device("cpu"), random_steps(5)), 0.95)


@pytest.mark.gpu
@EVERY_RULE
def test_409600_rows_on_the_gpu_have_the_bits_of_numpy(rules: Rules) -> None:
    steps = random_steps(409_600, tasks=2048, states=20)
    assert_same_bits(levels(on(torch.device("cuda"), steps), rules), levels(steps, rules))
