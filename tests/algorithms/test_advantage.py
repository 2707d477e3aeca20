from __future__ import annotations

import math
from dataclasses import fields, replace
from random import Random
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tables import CASES, Episode, episode, equations, table, take

from gigpo_mega.algorithms.advantage import estimate
from gigpo_mega.algorithms.primitives import PRESETS, returns, step_columns
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, Int64, RowTable

REWARDS = st.one_of(st.sampled_from([0.0, 10.0, 1.0, -0.1]), st.floats(-100, 100))
Steps = list[tuple[float, str, bool]]
STEPS = st.lists(st.tuples(REWARDS, st.sampled_from("abc"), st.booleans()), min_size=1, max_size=6)
EPISODES = st.lists(
    st.builds(
        lambda group, steps, won: Episode(group, *zip(*steps, strict=True), final="c", won=won),
        st.integers(0, 3),
        STEPS,
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)
CONFIGS = st.builds(
    lambda case, **options: AdvantageConfig(estimator=case[0], preset=case[1], **options),
    st.sampled_from(CASES),
    normalization=st.sampled_from(["mean_std", "mean"]),
    gamma=st.sampled_from([0.5, 0.95, 1.0]),
    omega=st.sampled_from([0.0, 1.0, 0.6]),
)
MEAN = AdvantageConfig(normalization="mean")


def assert_same_bits(one: Advantages, other: Advantages) -> None:
    for name in ("total", "episode", "step"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32), err_msg=name)


def at(advantages: Advantages, index: Int64) -> Advantages:
    return Advantages(*(getattr(advantages, field.name)[index] for field in fields(Advantages)))


def partition(groups: Int64) -> list[int]:
    """The first row of every row's group: what ids mean, whatever they are."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return first[inverse].tolist()


def test_worked_example_of_both_levels() -> None:
    # Two episodes of one task meet in state a; scores 10 and 0, returns at a 0.5 * 10 and 0.
    rows = table([episode(0, 0.0, 10.0, states="ab"), episode(0, 0.0, 0.0, states="ac")])
    advantages = estimate(rows, AdvantageConfig(normalization="mean", gamma=0.5, omega=0.2))
    assert advantages.episode.tolist() == [5.0, 5.0, -5.0, -5.0]
    assert advantages.step.tolist() == [2.5, 0.0, -2.5, 0.0]
    assert advantages.total.tolist() == [5.5, 5.0, -5.5, -5.0]
    assert advantages.step_group.tolist() == [0, 1, 0, 2]


def test_worked_example_with_deviation() -> None:
    # Scores 10, 0, 2: mean 4, unbiased variance (36 + 16 + 4) / 2 = 28.
    rows = table([episode(0, 10.0, states="a"), episode(0, 0.0, states="b"), episode(0, 2.0, states="c")])
    advantages = estimate(rows, AdvantageConfig(epsilon=1e-6))
    expected = np.array([6.0, -4.0, -2.0]) / (math.sqrt(28.0) + 1e-6)
    np.testing.assert_allclose(advantages.total, expected, rtol=1e-6)
    assert advantages.step.tolist() == [0.0, 0.0, 0.0]


def test_grpo_and_rloo_have_no_step_level() -> None:
    rows = table([episode(0, 10.0), episode(0, 0.0), episode(0, 2.0)])
    grpo = estimate(rows, AdvantageConfig(estimator="grpo", normalization="mean"))
    rloo = estimate(rows, AdvantageConfig(estimator="rloo"))
    assert grpo.total.tolist() == [6.0, -4.0, -2.0]
    assert rloo.total.tolist() == [9.0, -6.0, -3.0]  # 10 - (0 + 2) / 2, 0 - (10 + 2) / 2, 2 - (10 + 0) / 2
    for advantages in (grpo, rloo):
        assert advantages.step_group.tolist() == [-1, -1, -1]
        assert advantages.step.tolist() == [0.0, 0.0, 0.0]


def test_the_paper_lets_earlier_steps_feel_a_penalty_and_the_reference_does_not() -> None:
    rows = table([episode(0, 0.0, 0.0, states="ab", valid=[True, False]), episode(0, 0.0, 0.0, states="ab")])
    paper = estimate(rows, AdvantageConfig(normalization="mean", gamma=0.5, invalid_penalty=0.5))
    assert paper.episode.tolist() == [-0.25, -0.25, 0.25, 0.25]
    assert paper.step.tolist() == [-0.125, -0.25, 0.125, 0.25]
    cfg = AdvantageConfig(preset="reference", normalization="mean", gamma=0.5, invalid_penalty=0.5)
    reference = estimate(rows, cfg)
    assert reference.episode.tolist() == [0.125, -0.375, 0.125, 0.125]  # mean over rows: -0.5 / 4
    assert reference.step.tolist() == [0.0, -0.25, 0.0, 0.25]


def test_the_reference_rounds_a_group_s_mean_to_float32() -> None:
    # 18 successes and 2 with a penalty: 0.3248888 in golden p08, 0.3248826 in exact arithmetic.
    rows = table([episode(0, 10.0, valid=[index >= 2]) for index in range(20)])
    cfg = AdvantageConfig(preset="reference", estimator="grpo")
    assert estimate(rows, cfg).total[-1] == pytest.approx(0.3248888, abs=5e-7)
    exact = AdvantageConfig(preset="paper", estimator="grpo")
    assert estimate(rows, exact).total[-1] == pytest.approx(0.3248826, abs=5e-7)


def test_similarity_groups_observations_instead_of_keys() -> None:
    rows = table([Episode(0, [1.0], ["go to shelf 1"], [True]), Episode(0, [3.0], ["go to shelf 2"], [True])])
    assert estimate(rows, MEAN).step.tolist() == [0.0, 0.0]
    similar = estimate(rows, AdvantageConfig(normalization="mean", similarity=0.9))
    assert similar.step_group.tolist() == [0, 0]
    assert similar.step.tolist() == [-1.0, 1.0]


def test_similarity_without_observations_is_refused() -> None:
    rows = table([Episode(0, [1.0], [""], [True])])
    with pytest.raises(ValueError, match=r"advantage\.similarity 0\.9 compares observation texts"):
        estimate(rows, AdvantageConfig(similarity=0.9))


def test_no_rows_have_no_advantages() -> None:
    advantages = estimate(RowTable.from_groups([]), AdvantageConfig())
    assert advantages.total.shape == advantages.step_group.shape == (0,)


@given(st.lists(STEPS, min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_returns_agree_with_the_quadratic_sum(trajectories: list[Steps], gamma: float) -> None:
    columns: list[Any] = [zip(*steps, strict=True) for steps in trajectories]
    rows = table([Episode(0, *of_one) for of_one in columns])
    expected = [
        math.fsum(gamma**k * reward for k, (reward, _, _) in enumerate(steps[t:]))
        for steps in trajectories
        for t in range(len(steps))
    ]
    free = step_columns(rows, AdvantageConfig(invalid_penalty=0.0))
    _, actual = returns(free, gamma, PRESETS["paper"])
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-10)


@given(EPISODES, st.sampled_from(["mean_std", "mean"]), st.sampled_from([0.5, 0.95, 1.0]))
def test_gigpo_agrees_with_the_equations(
    episodes: list[Episode], normalization: Literal["mean_std", "mean"], gamma: float
) -> None:
    # This epsilon is above the rounding noise of sums of 100s, so groups equal but for it stay comparable.
    cfg = AdvantageConfig(normalization=normalization, gamma=gamma, omega=0.7, epsilon=1e-3)
    advantages = estimate(table(episodes), cfg)
    expected = np.array(equations(episodes, cfg))
    actual = np.stack([advantages.total, advantages.episode, advantages.step], axis=1)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


@given(EPISODES, CONFIGS, st.randoms())
def test_order_of_rows_changes_no_bit(episodes: list[Episode], cfg: AdvantageConfig, random: Random) -> None:
    rows = table(episodes)
    order = np.array(random.sample(range(len(rows)), len(rows)))
    shuffled, straight = estimate(take(rows, order), cfg), estimate(rows, cfg)
    restored = at(shuffled, np.argsort(order))
    assert_same_bits(straight, restored)
    assert partition(restored.step_group) == partition(straight.step_group)


def test_scores_add_up_in_time_order_however_rows_are_stored() -> None:
    # 1e16 - 1e16 + 1 is 1, backwards 1 - 1e16 + 1e16 is 0.
    rows = table([episode(0, 1e16, -1e16, 1.0), episode(0, 0.0)])
    backwards = take(rows, np.array([3, 2, 1, 0]))
    cfg = AdvantageConfig(estimator="grpo", normalization="mean")
    assert estimate(rows, cfg).total.tolist() == [0.5, 0.5, 0.5, -0.5]
    assert estimate(backwards, cfg).total.tolist() == [-0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("estimator", ["gigpo", "grpo", "rloo"])
def test_order_changes_no_bit_if_sums_cancel(estimator: Literal["gigpo", "grpo", "rloo"]) -> None:
    # Added in the order they come, these give a mean that differs between orders even in float32.
    scores = [sign * 1e8 / part for part in (3, 7, 11) for sign in (1, -1)] + [0.1]
    cfg = AdvantageConfig(estimator=estimator, normalization="mean")
    rows = table([episode(0, score, states="a") for score in scores])
    straight = estimate(rows, cfg)
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(scores))
        assert_same_bits(estimate(take(rows, order), cfg), at(straight, order))


@given(EPISODES, CONFIGS, st.randoms())
def test_order_and_numbering_of_trajectories_and_tasks_change_no_bit(
    episodes: list[Episode], cfg: AdvantageConfig, random: Random
) -> None:
    rows = table(episodes)
    order = random.sample(range(len(episodes)), len(episodes))
    moved = table([episodes[index] for index in order])
    renumbered = replace(moved, group=100 - 7 * moved.group, trajectory=5 * moved.trajectory + 2)
    place = np.concatenate([np.flatnonzero(rows.trajectory == index) for index in order])
    assert_same_bits(estimate(renumbered, cfg), at(estimate(rows, cfg), place))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@given(episodes=EPISODES, cfg=CONFIGS)
def test_sharding_tasks_over_ranks_changes_no_bit(
    ranks: int, episodes: list[Episode], cfg: AdvantageConfig
) -> None:
    assume(cfg.estimator != "reinforce_plus_plus_baseline")  # which compares all rows
    rows = table(episodes)
    whole = estimate(rows, cfg)
    for rank in range(ranks):
        mine = np.flatnonzero(rows.group % ranks == rank)
        assert_same_bits(estimate(take(rows, mine), cfg), at(whole, mine))


@given(EPISODES, st.sampled_from([0.125, 4.0, 1024.0]))
def test_scaling_rewards_by_a_power_of_two_scales_exactly(episodes: list[Episode], scale: float) -> None:
    scaled = [replace(e, rewards=[scale * reward for reward in e.rewards]) for e in episodes]
    one = AdvantageConfig(invalid_penalty=0.25, epsilon=2.0**-20)
    other = AdvantageConfig(invalid_penalty=0.25 * scale, epsilon=2.0**-20 * scale)
    assert_same_bits(estimate(table(scaled), other), estimate(table(episodes), one))


@given(EPISODES, st.sampled_from([-8.0, 3.0, 1000.0]))
def test_shifting_every_score_changes_no_episode_advantage(episodes: list[Episode], shift: float) -> None:
    shifted = [replace(e, rewards=[*e.rewards[:-1], e.rewards[-1] + shift]) for e in episodes]
    one, other = estimate(table(episodes), MEAN), estimate(table(shifted), MEAN)
    np.testing.assert_allclose(other.episode, one.episode, rtol=1e-6, atol=1e-9)


@given(EPISODES)
def test_episode_advantages_of_a_task_cancel_over_its_trajectories(episodes: list[Episode]) -> None:
    rows = table(episodes)
    advantages = estimate(rows, MEAN).episode[rows.step == 0]
    sums = np.bincount(rows.group[rows.step == 0], advantages)
    np.testing.assert_allclose(sums, 0.0, atol=1e-3)  # scores reach 600, a float32 place is 3e-5
