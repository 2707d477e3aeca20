"""HGPO, G2PO, GraphGPO, GAGPO and REINFORCE++ against plain loops, by hand, and where there is nothing to
compare."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import loops
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tables import CASES, Episode, episode, table

from gigpo_mega.algorithms.advantage import BUILT_IN, estimate
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.errors import UserError
from gigpo_mega.types import Advantages

NEWER = ("reinforce_plus_plus_baseline", "hgpo", "g2po", "graphgpo", "gagpo")
MEAN: dict[str, Any] = {"normalization": "mean"}
REWARDS = st.one_of(st.sampled_from([0.0, 10.0, 1.0, -0.1]), st.floats(-100, 100))
DYADIC = st.sampled_from([0.0, 8.0, 1.0])  # sums and means are exact


def episodes_of(rewards: st.SearchStrategy[float]) -> st.SearchStrategy[list[Episode]]:
    """Up to a dozen short episodes of three tasks in four states; some end in one of these."""
    steps = st.lists(st.tuples(rewards, st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=7)
    one = st.builds(
        lambda group, steps, final, won: Episode(group, *zip(*steps, strict=True), final=final, won=won),
        st.integers(0, 2), steps, st.sampled_from(["a", "d", "end"]), st.booleans(),
    )  # fmt: skip
    return st.lists(one, min_size=1, max_size=12)


# This epsilon is above the rounding noise of sums of 100s, so groups equal but for it stay comparable.
CONFIGS = st.builds(
    AdvantageConfig,
    normalization=st.sampled_from(["mean_std", "mean"]),
    gamma=st.sampled_from([0.5, 0.95, 1.0]),
    omega=st.sampled_from([0.7, 1.0]),
    episode_weight=st.sampled_from([0.0, 1.0, 0.4]),
    epsilon=st.just(1e-3),
    history_length=st.integers(0, 4),
    history_alpha=st.sampled_from([0.0, 1.0, 1.5]),
    gae_lambda=st.sampled_from([0.0, 0.8, 1.0]),
    distance=st.sampled_from(["absolute", "relative"]),
    goal_reward=st.sampled_from([1.0, 10.0]),
)


def assert_levels(found: Advantages, expected: loops.Levels) -> None:
    actual = np.stack([found.total, found.episode, found.step], axis=1)
    np.testing.assert_allclose(actual, np.array(expected), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("estimator", NEWER)
@given(episodes=episodes_of(REWARDS), cfg=CONFIGS)
def test_columns_agree_with_loops(estimator: str, episodes: list[Episode], cfg: AdvantageConfig) -> None:
    cfg = replace(cfg, estimator=estimator)
    assert_levels(estimate(table(episodes), cfg), getattr(loops, estimator)(episodes, cfg))


@given(episodes_of(DYADIC), CONFIGS)
@example([episode(0, r, states="a") for r in (0.0, 8.0, 1.0, 3.0)], AdvantageConfig(gamma=0.5))
def test_official_hgpo_agrees_with_loops(episodes: list[Episode], cfg: AdvantageConfig) -> None:
    cfg = replace(cfg, estimator="hgpo", preset="reference", gamma=0.5, invalid_penalty=0.125)
    assert_levels(estimate(table(episodes), cfg), loops.hgpo(episodes, cfg, official=True))


def values(episodes: list[Episode], estimator: str, **options: Any) -> list[float]:
    """A of every row."""
    return estimate(table(episodes), AdvantageConfig(estimator=estimator, **options)).total.tolist()


def test_hgpo_by_hand() -> None:
    """Two episodes come to state c by a, two by b; both levels of the step at c are given."""
    ways = (("a", 8.0), ("a", 0.0), ("b", 4.0), ("b", 8.0))
    episodes = [episode(0, 0.0, reward, states=f"{way}c") for way, reward in ways]
    one_state, two_states = np.array([3.0, -5.0, -1.0, 3.0]), np.array([4.0, -4.0, -2.0, 2.0])
    options: dict[str, Any] = {"gamma": 0.5, "history_length": 1, **MEAN}
    found = values(episodes, "hgpo", **options)[1::2]
    assert found == pytest.approx(((one_state + 2 * two_states) / 3).tolist())
    even = values(episodes, "hgpo", history_alpha=0.0, **options)[1::2]
    assert even == pytest.approx(((one_state + two_states) / 2).tolist())
    official = values(episodes, "hgpo", preset="reference", **options)[1::2]
    assert official == pytest.approx(((2 * one_state + 3 * two_states) / 5).tolist())


def test_hgpo_divides_by_the_population_deviation() -> None:
    episodes = [episode(0, r, states="a") for r in (8.0, 0.0)]
    assert values(episodes, "hgpo") == pytest.approx([1.0, -1.0], rel=1e-6)  # deviation 4, not 5.66


def test_a_level_of_advantage_zero_counts_but_not_in_the_official_code() -> None:
    """At c the first step has A_1 = 0 among 4, 8 and 0, and A_2 = -2 among 4 and 8."""
    ways = (("a", 4.0), ("a", 8.0), ("b", 0.0))
    episodes = [episode(0, 0.0, reward, states=f"{way}c") for way, reward in ways]
    options: dict[str, Any] = {"gamma": 0.5, "history_length": 1, **MEAN}
    assert values(episodes, "hgpo", **options)[1] == pytest.approx(2 / 3 * -2.0)
    assert values(episodes, "hgpo", preset="reference", **options)[1] == pytest.approx(-2.0)


def test_a_first_step_has_no_group_of_two_states() -> None:
    episodes = [episode(0, 0.0, 8.0, states="aa"), episode(0, 0.0, states="a")]
    # Among the returns 4, 8 and 0. Both first steps have nothing before them, which is no history to share.
    assert values(episodes, "hgpo", gamma=0.5, history_length=3, **MEAN) == [0.0, 4.0, -4.0]


def test_g2po_by_hand() -> None:
    # gamma 0.5: V(a) = mean(8/4, 0/4) = 1, V(b) = 8/2 = 4, V(c) = 0/2 = 0.
    episodes = [episode(0, 0.0, 8.0, states="ab"), episode(0, 0.0, 0.0, states="ac")]
    # V(s'): 4, 8, 0, 0. In a: mean 2: local 2, -2; b and c are alone. Gains 3, 4, -1, 0: mean 1.5.
    found = estimate(table(episodes), AdvantageConfig(estimator="g2po", gamma=0.5, **MEAN))
    assert found.episode.tolist() == [4.0, 4.0, -4.0, -4.0]
    assert found.step.tolist() == [2.0 + 1.5, 2.5, -2.0 - 2.5, -1.5]
    assert found.total.tolist() == [7.5, 6.5, -8.5, -5.5]
    assert found.step_group.tolist() == [0, 1, 0, 2]


def test_g2po_s_penalty_is_the_configured_one_on_the_step_and_its_episode_alone() -> None:
    episodes = [episode(0, 0.0, 0.0, states="ab", valid=[False, True]), episode(0, 0.0, 0.0, states="ab")]
    options: dict[str, Any] = {"invalid_penalty": 0.5, "gamma": 0.5, **MEAN}
    assert values(episodes, "g2po", **options) == [-0.5, -0.25, 0.5, 0.25]
    # The official code takes 0.1 on the step level whatever is configured, and rows for the task's mean.
    official = values(episodes, "g2po", preset="reference", **options)
    assert official == pytest.approx([-0.375 - 0.05, 0.125, 0.125 + 0.05, 0.125])


def test_an_episode_ends_in_its_score_but_in_10_or_0_in_the_official_code() -> None:
    episodes = [episode(0, 4.0, states="a"), episode(0, 0.0, states="a")]
    options: dict[str, Any] = {"gamma": 0.5, "episode_weight": 0.0, **MEAN}
    # V(a) = mean(2, 0) = 1; V(s') 4, 0; local 2, -2; gains 3, -1: 2, -2.
    assert values(episodes, "g2po", **options) == [4.0, -4.0]
    assert values(episodes, "g2po", preset="reference", **options) == [0.0, 0.0]


def test_the_official_g2po_has_one_gamma() -> None:
    episodes = [episode(0, 0.0, 10.0, states="ab"), episode(0, 0.0, 0.0, states="ac")]
    one, other = (values(episodes, "g2po", preset="reference", gamma=gamma) for gamma in (0.5, 0.95))
    assert one == other
    assert one != values(episodes, "g2po", gamma=0.5)


def test_graphgpo_by_hand() -> None:
    # a b goal; a c b ... lost at d: c leads to b, so the failure's steps to b are worth as much.
    episodes = [
        episode(0, 0.0, 8.0, states="ab", won=True),
        episode(0, 0.0, 0.0, 0.0, states="acb", final="d"),
    ]
    # d(a) = 2, d(b) = 1, d(c) = 2, d = 3 at state d. gamma 0.5, r = 8: a -> b 8/4, a -> c 8/8, c -> b 8/4,
    # b -> goal 8/2, b -> d 8/16.
    cfg = AdvantageConfig(estimator="graphgpo", gamma=0.5, goal_reward=8.0, **MEAN)
    found = estimate(table(episodes), cfg)
    assert found.step.tolist() == [0.5, 1.75, -0.5, 0.0, -1.75]
    assert found.episode.tolist() == [4.0, 4.0, -4.0, -4.0, -4.0]
    assert found.total.tolist() == [4.5, 5.75, -4.5, -4.0, -5.75]
    relative = estimate(table(episodes), replace(cfg, distance="relative"))
    # a to b 8, a to c 8/2, c to b 8, b to the goal 8, b to d 8/8.
    assert relative.step.tolist() == [2.0, 3.5, -2.0, 0.0, -3.5]


def test_a_success_is_what_the_environment_says_but_any_positive_score_in_the_official_code() -> None:
    episodes = [episode(0, 3.0, states="a", final="b"), episode(0, 0.0, states="a", won=True)]
    options: dict[str, Any] = {"gamma": 0.5, "goal_reward": 8.0, "episode_weight": 0.0, **MEAN}
    assert values(episodes, "graphgpo", **options) == [-1.5, 1.5]  # 8 * 0.5^3 and 8 * 0.5
    assert values(episodes, "graphgpo", preset="reference", **options) == [3.0, -3.0]  # 8 and 8 * 0.5^2


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_a_success_counts_in_the_last_step_of_an_episode_only(preset: Literal["paper", "reference"]) -> None:
    """An environment may say so of a step in between, as Gymnasium's `is_success` does."""
    rows = table([episode(0, 0.0, 0.0, states="ab"), episode(0, 0.0, 0.0, states="ac")])
    first = replace(rows.steps[0], success=True)
    rows = replace(rows, steps=(first, *rows.steps[1:]))
    found = estimate(rows, AdvantageConfig(estimator="graphgpo", preset=preset))
    assert found.total.tolist() == [0.0] * 4


def test_without_a_success_only_penalties_separate_the_steps_of_a_state() -> None:
    episodes = [episode(0, 0.0, 0.0, states="ab"), episode(0, 0.0, 0.0, states="aa", valid=[True, False])]
    options: dict[str, Any] = {"episode_weight": 0.0, "invalid_penalty": 0.75, **MEAN}
    assert values(episodes, "graphgpo", **options) == pytest.approx([0.25, 0.0, 0.25, -0.5])


def test_similar_states_are_one_in_graph_and_comparison_but_not_compared_in_the_official_code() -> None:
    def play(state: str, won: bool) -> Episode:
        return Episode(0, [0.0], [f"you stand before shelf {state}"], [True], final="a wall", won=won)

    options: dict[str, Any] = {"episode_weight": 0.0, "gamma": 0.5, "goal_reward": 8.0, **MEAN}
    rows = [play("1", True), play("2", False)]
    assert values(rows, "graphgpo", **options) == [0.0, 0.0]
    assert values(rows, "graphgpo", similarity=0.9, **options) == [1.5, -1.5]  # 4 and 8 * 0.5^3
    assert values(rows, "graphgpo", similarity=0.9, preset="reference", **options) == [0.0, 0.0]


def test_gagpo_by_hand() -> None:
    # gamma 0.5: returns 4, 8 and 0, 0. V(a) = 2, V(b) = 4.
    episodes = [episode(0, 0.0, 8.0, states="ab"), episode(0, 0.0, 0.0, states="ab")]
    # delta: 0 + 0.5 * 4 - 2 = 0, 8 - 4 = 4; 0, -4. With lambda 0.5 the first steps feel a quarter.
    found = values(episodes, "gagpo", gamma=0.5, gae_lambda=0.5, **MEAN)
    assert found == [1.0, 4.0, -1.0, -4.0]
    assert values(episodes, "gagpo", gamma=0.5, gae_lambda=0.0, **MEAN) == [0.0, 4.0, 0.0, -4.0]
    scaled = values(episodes, "gagpo", gamma=0.5, gae_lambda=0.5)
    assert scaled == pytest.approx(np.array([1.0, 4.0, -1.0, -4.0]) / math.sqrt(34 / 3), rel=1e-6)


def test_states_seen_once_have_no_temporal_difference() -> None:
    episodes = [episode(0, 0.1, 0.7, 9.9, states="abc"), episode(0, 0.3, -0.7, states="de")]
    assert values(episodes, "gagpo", epsilon=1e-12) == [0.0] * 5  # exactly, or it would be noise over epsilon


def test_reinforce_plus_plus_by_hand() -> None:
    # Task 0: 8, 0; task 1: 3, 3. Less the means: 4, -4, 0, 0; one token each but the second step's two.
    episodes = [episode(0, 0.0, 8.0), episode(0, 0.0), episode(1, 3.0), episode(1, 3.0)]
    # Tokens 4, 4, 4, -4, 0, 0: mean 4/3, squares 3 * (8/3)^2 + (16/3)^2 + 2 * (4/3)^2 = 160/3, over 5.
    deviation = math.sqrt(160 / 3 / 5)
    expected = np.array([8 / 3, 8 / 3, -16 / 3, -4 / 3, -4 / 3]) / deviation
    assert values(episodes, "reinforce_plus_plus_baseline") == pytest.approx(expected.tolist(), rel=1e-6)


def test_gigpo_s_ablations_are_settings() -> None:
    rows = table([episode(0, 0.0, 10.0, states="ab"), episode(0, 0.0, 0.0, states="ac")])
    whole = estimate(rows, AdvantageConfig())
    assert estimate(rows, AdvantageConfig(episode_weight=0.0)).total.tolist() == whole.step.tolist()
    assert estimate(rows, AdvantageConfig(omega=0.0)).total.tolist() == whole.episode.tolist()
    unscaled = estimate(rows, AdvantageConfig(normalization="mean"))
    assert unscaled.total.tolist() == [5.0 + 4.75, 5.0, -5.0 - 4.75, -5.0]


@pytest.mark.parametrize(("estimator", "preset"), CASES)
@pytest.mark.parametrize("normalization", ["mean_std", "mean"])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -0.7])
def test_equal_episodes_have_advantages_of_exactly_zero(
    estimator: str, preset: str, normalization: str, reward: float
) -> None:
    for size in (2, 3, 7):
        alike = [episode(0, reward, states="a", won=reward > 0)] * size
        options: dict[str, Any] = {"preset": preset, "normalization": normalization}
        assert values(alike, estimator, **options) == [0.0] * size


@pytest.mark.parametrize("estimator", NEWER)
def test_a_lone_step_has_no_advantage(estimator: str) -> None:
    assert values([episode(0, 10.0, won=True)], estimator) == [0.0]
    assert values([], estimator) == []


@pytest.mark.parametrize("estimator", ["hgpo", "g2po", "graphgpo", "gagpo"])
def test_one_episode_is_compared_with_itself_alone(estimator: str) -> None:
    """It meets a state twice; the other states tell nothing."""
    one = [episode(0, 0.0, 0.0, 0.0, 8.0, states="abac", won=True)]
    found = estimate(table(one), AdvantageConfig(estimator=estimator, gamma=0.5, **MEAN))
    assert not found.episode.any()
    assert np.isfinite(found.total).all()
    assert found.step[0] < found.step[2]  # from a to b and back, or straight to c


def test_groups_without_the_states_after_their_steps_are_refused_by_graphgpo_alone() -> None:
    rows = table([episode(0, 1.0), episode(0, 0.0)])
    older = replace(rows, steps=tuple(replace(step, next_anchor=b"") for step in rows.steps))
    for estimator in BUILT_IN:
        if estimator != "graphgpo":
            estimate(older, AdvantageConfig(estimator=estimator))
    for similarity in (None, 0.9):
        with pytest.raises(UserError, match=r"do not tell which state they lead to.* choose another"):
            estimate(older, AdvantageConfig(estimator="graphgpo", similarity=similarity))
