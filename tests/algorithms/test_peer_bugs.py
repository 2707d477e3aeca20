"""Bugs that other implementations of group-relative advantages have had, each by its symptom."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from tables import CASES, Episode, episode, table, take

from envs.base import LARGEST_REWARD
from gigpo_mega.algorithms.advantage import BUILT_IN, estimate
from gigpo_mega.algorithms.anchors import anchor_key
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.errors import UserError
from kernels.anchor import group_ids

Preset = Literal["paper", "reference"]
GRPO = AdvantageConfig(estimator="grpo", normalization="mean")
BOTH_PRESETS = pytest.mark.parametrize("preset", ["paper", "reference"])


def test_equal_observations_of_different_tasks_are_not_merged() -> None:
    """ROLL and Trinity grouped by observation alone."""
    rows = table([episode(task, reward, states="a") for task in (0, 1) for reward in (0.0, 10.0 * task)])
    assert rows.steps[0].observation == rows.steps[2].observation
    advantages = estimate(rows, AdvantageConfig(normalization="mean"))
    assert advantages.step_group.tolist() == [0, 0, 1, 1]
    assert advantages.step.tolist() == [0.0, 0.0, -5.0, 5.0]


def test_equal_keys_of_different_tasks_are_not_merged() -> None:
    """Even if the keys have no salt."""
    anchor = np.zeros((3, 2), dtype=np.uint64)
    assert group_ids(np.array([4, 9, 4]), anchor).tolist() == [0, 1, 0]
    assert anchor_key("start", "task4") != anchor_key("start", "task9")


def test_uneven_groups_keep_their_own_baselines() -> None:
    """slime #2230: sizes 4, 3, 4 fell through to `view(-1, N)`, one global group, and 5, 5, 5 got -1.09."""
    sizes = {0: [8.0, 6.0, 9.0, 5.0], 1: [5.0, 5.0, 5.0], 2: [4.0, 7.0, 8.0, 5.0]}
    rows = table([episode(task, reward) for task, rewards in sizes.items() for reward in rewards])
    assert estimate(rows, GRPO).total.tolist() == [1.0, -1.0, 2.0, -2.0, 0.0, 0.0, 0.0, -2.0, 1.0, 2.0, -1.0]


def test_uneven_groups_average_to_zero_each() -> None:
    """slime #1414: rewards 1..4 | 10, 12 | 5..7 had normalized means -3.06, 5.44, 0.44."""
    groups = [0, 0, 0, 0, 1, 1, 2, 2, 2]
    rewards = [1.0, 2.0, 3.0, 4.0, 10.0, 12.0, 5.0, 6.0, 7.0]
    rows = table([episode(task, reward) for task, reward in zip(groups, rewards, strict=True)])
    totals = estimate(rows, GRPO).total
    assert [totals[rows.group == task].sum() for task in range(3)] == [0.0, 0.0, 0.0]
    assert totals.tolist() == [-1.5, -0.5, 0.5, 1.5, -1.0, 1.0, -1.0, 0.0, 1.0]


@pytest.mark.parametrize("estimator", BUILT_IN)
def test_copied_rows_are_refused(estimator: str) -> None:
    """verl-agent fills a batch with copies first, so they count twice in both statistics."""
    rows = table([episode(0, 0.0, 10.0), episode(0, 0.0)])
    padded = take(rows, np.array([0, 1, 2, 1]))
    with pytest.raises(ValueError, match="trajectory 0 has step 1 where step 2 was due"):
        estimate(padded, AdvantageConfig(estimator=estimator))


def test_dropped_steps_are_refused() -> None:
    """A hole would discount the later rewards too little."""
    rows = table([episode(0, 0.0, 0.0, 10.0)])
    with pytest.raises(ValueError, match="trajectory 0 has step 2 where step 1 was due"):
        estimate(take(rows, np.array([0, 2])), AdvantageConfig())


def test_trajectories_that_share_an_id_are_refused() -> None:
    """Numbered within their task instead of over all tasks, two episodes would become one."""
    rows = table([episode(0, 1.0), episode(1, 2.0)])
    shared = replace(rows, trajectory=np.zeros(2, dtype=np.int64))
    with pytest.raises(ValueError, match="trajectory 0 has step 0 where step 1 was due"):
        estimate(shared, AdvantageConfig())


def test_rejected_trajectories_leave_no_trace_in_the_baseline() -> None:
    """verl #6375: a rejected sibling with reward 100 turned the advantage of the accepted one into -49.5."""
    rows = table([episode(0, 100.0), episode(0, 1.0)])
    accepted = take(rows, np.array([1]))
    assert estimate(accepted, GRPO).total.tolist() == [0.0]
    raw = AdvantageConfig(estimator="grpo", normalization="mean", preset="reference")
    assert estimate(accepted, raw).total.tolist() == [1.0]


def test_long_trajectories_do_not_weigh_more() -> None:
    """verl-agent #138: with statistics over rows, nine failing steps pull the mean to 1 instead of 5."""
    rows = table([episode(0, 10.0), episode(0, *[0.0] * 9)])
    assert estimate(rows, GRPO).total.tolist() == [5.0] + [-5.0] * 9
    by_row = AdvantageConfig(estimator="grpo", normalization="mean", preset="reference")
    assert estimate(rows, by_row).total.tolist() == [9.0] + [-1.0] * 9


@BOTH_PRESETS
def test_singleton_step_groups_get_zero(preset: Preset) -> None:
    rows = table([episode(0, 3.0, states="a"), episode(0, 8.0, states="b")])
    assert estimate(rows, AdvantageConfig(preset=preset)).step.tolist() == [0.0, 0.0]


def test_singleton_tasks_get_zero_and_the_raw_score_in_the_reference() -> None:
    rows = table([episode(0, 7.0), episode(1, 1.0), episode(1, 3.0)])
    for estimator in ("gigpo", "grpo", "rloo"):
        paper = estimate(rows, AdvantageConfig(estimator=estimator, omega=0.0))
        assert paper.total[0] == 0.0
        reference = estimate(rows, AdvantageConfig(estimator=estimator, omega=0.0, preset="reference"))
        assert reference.total[0] == pytest.approx(7.0, rel=2e-6)


@BOTH_PRESETS
@pytest.mark.parametrize("normalization", ["mean_std", "mean"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 9.9, -0.7, 1e-9])
def test_identical_rewards_give_exactly_zero(
    preset: Preset, normalization: Literal["mean_std", "mean"], reward: float
) -> None:
    """A mean that misses the common value by rounding, over epsilon, is an advantage made of noise."""
    for size in (2, 3, 7, 49):
        rows = table([episode(0, reward, states="a")] * size)
        for estimator in ("gigpo", "grpo", "rloo"):
            cfg = AdvantageConfig(estimator=estimator, preset=preset, normalization=normalization)
            advantages = estimate(rows, cfg)
            assert not advantages.total.any()
            assert not advantages.episode.any()
            assert not advantages.step.any()


@pytest.mark.parametrize("state", [1, True, 1.0, None, b"1", ("1",)])
def test_states_that_are_no_text_are_refused(state: object) -> None:
    """1 == True == 1.0 in Python, so as dictionary keys they were one state."""
    with pytest.raises(TypeError, match="anchor state must be text, got"):
        anchor_key(state, "task")  # pyright: ignore[reportArgumentType]


def test_texts_of_equal_values_are_different_states() -> None:
    assert len({anchor_key(str(value), "task") for value in (1, True, 1.0)}) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@BOTH_PRESETS
def test_a_reward_that_is_not_finite_is_named(value: float, preset: Preset) -> None:
    """One NaN used to spread over its whole group silently."""
    rows = table([episode(0, 1.0), episode(3, 0.0, value)])
    with pytest.raises(UserError, match=rf"reward of row 2 \(group 3, trajectory 1, step 1\) is {value}:"):
        estimate(rows, AdvantageConfig(preset=preset))
    named = replace(rows, tasks=("a", "b", "c", "room-7"))
    with pytest.raises(UserError, match=r"reward of row 2 \(task room-7, trajectory 1, step 1\)"):
        estimate(named, AdvantageConfig(preset=preset))


@BOTH_PRESETS
@pytest.mark.parametrize("normalization", ["mean_std", "mean"])
def test_the_largest_rewards_that_are_taken_stay_finite(
    preset: Preset, normalization: Literal["mean_std", "mean"]
) -> None:
    """Rounded to float32 or squared, larger ones overflow, and the estimator would get the blame."""
    rows = table([episode(0, LARGEST_REWARD, LARGEST_REWARD), episode(0, -LARGEST_REWARD)])
    for estimator in (name for name, its in CASES if its == preset):
        cfg = AdvantageConfig(estimator=estimator, preset=preset, normalization=normalization)
        assert np.isfinite(estimate(rows, cfg).total).all()
    with pytest.raises(UserError, match=r"at most 1e\+30 in size"):
        estimate(table([episode(0, 2 * LARGEST_REWARD)]), AdvantageConfig(preset=preset))


def test_similarity_keeps_difflib_s_autojunk() -> None:
    """It drops frequent characters from 200 on, so long texts that differ in one letter can be dissimilar."""
    cfg = AdvantageConfig(normalization="mean", similarity=0.9)
    for times, groups in ((9, [0, 0]), (10, [0, 1])):
        texts = [letter + "look around the room " * times for letter in "xy"]
        rows = table([Episode(0, [1.0], [text], [True]) for text in texts])
        assert estimate(rows, cfg).step_group.tolist() == groups
