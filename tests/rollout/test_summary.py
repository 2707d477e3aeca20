"""What an iteration's episodes say in numbers: groups that differ in nothing but penalties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.base import Task
from gigpo_mega.algorithms.advantage import estimate
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.rollout.summary import advantage_metrics, penalty_warning, rollout_metrics
from gigpo_mega.types import Float32, Group, Int32, RowTable, Step, Trajectory

SHARE = "advantage/penalty_only_groups"
Episode = tuple[int, list[float], list[bool]]  # task, rewards, valid
NOTHING: Int32 = np.zeros(0, np.int32)
NO_LOGPROBS: Float32 = np.zeros(0, np.float32)


def table(*episodes: Episode) -> RowTable:
    """Rows whose anchor states are their time steps."""
    rows = [
        (g, i, t, r, v)
        for i, (g, rewards, valid) in enumerate(episodes)
        for t, (r, v) in enumerate(zip(rewards, valid, strict=True))
    ]
    steps = tuple(Step(NOTHING, NOTHING, NO_LOGPROBS, r, v, bytes(16), NOTHING) for _, _, _, r, v in rows)
    group, trajectory, step, reward, valid = (np.array(column) for column in zip(*rows, strict=True))
    anchor = np.stack([step, group], axis=1).astype(np.uint64)
    return RowTable(group, trajectory, step, reward.astype(np.float64), valid, anchor, steps)


def share(cfg: AdvantageConfig, *episodes: Episode) -> float:
    rows = table(*episodes)
    return advantage_metrics(rows, estimate(rows, cfg), cfg)[SHARE]


def garbage(task: int, invalid: int) -> Episode:
    return task, [0.0] * 4, [True] * (4 - invalid) + [False] * invalid


def test_garbage_blown_up_to_successes_is_counted() -> None:
    """Of 8 episodes of garbage those with few invalid actions got A_S above 1.6, as if they had succeeded."""
    cfg, episodes = AdvantageConfig(), [garbage(0, invalid) for invalid in (0, 1, 2, 2, 3, 3, 4, 4)]
    found = estimate(table(*episodes), cfg)
    assert found.step.max() > 1.6
    assert found.step.min() < -1.1
    assert share(cfg, *episodes) == 1.0
    mean = AdvantageConfig(normalization="mean")
    assert np.abs(estimate(table(*episodes), mean).step).max() < 0.3  # in units of the reward


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize(
    ("episodes", "expected"),
    [
        ([garbage(0, 1), garbage(0, 2), garbage(1, 0), garbage(1, 0)], 0.5),
        ([garbage(0, 1), (0, [0.0, 1.0], [True, True])], 0.0),  # one succeeds
        ([(0, [0.0, 10.0], [True, True]), (0, [0.0, 0.0, 10.0], [False, True, True])], 1.0),  # all succeed
        ([(0, [0.1, 0.2, 0.3], [True] * 3), (0, [0.3, 0.2, 0.1], [True, True, False])], 1.0),  # rounding
        ([garbage(7, 0), garbage(7, 0), garbage(3, 2)], 0.0),
    ],
)
def test_a_group_counts_if_nothing_but_penalties_tells_its_episodes_apart(
    preset: Any, episodes: list[Episode], expected: float
) -> None:
    if preset == "reference" and expected == 0.0 and episodes[0][0] == 7:
        expected = 0.5  # there the penalty is that of a row: the rows of the only episode differ
    assert share(AdvantageConfig(preset=preset), *episodes) == expected


@pytest.mark.parametrize(("estimator", "nonzero"), [("gigpo", 4 / 9), ("grpo", 0.0)])
def test_steps_of_a_state_are_counted_whatever_the_estimator(estimator: str, nonzero: float) -> None:
    """States are time steps here: in task 0 both episodes share 2, the longer one and task 1 have 5 alone."""
    cfg = AdvantageConfig(estimator=estimator, invalid_penalty=0.0)
    rows = table(
        (0, [0.0, 1.0], [True] * 2), (0, [0.0] * 4, [True] * 4), (1, [0.0, 0.0, 1.0], [True] * 3)
    )  # fmt: skip
    found = advantage_metrics(rows, estimate(rows, cfg), cfg)
    assert found["anchor/singletons"] == found["anchor/size_1"] == pytest.approx(5 / 9)
    assert found["anchor/size_2_3"] == pytest.approx(4 / 9)
    assert found["anchor/mean_size"] == pytest.approx(9 / 7)
    assert found["advantage/step_nonzero"] == pytest.approx(nonzero)
    assert found["advantage/nonzero"] == pytest.approx(6 / 9)  # all of task 0, whose episodes differ


def test_success_is_told_by_task_type() -> None:
    step = Step(NOTHING, NOTHING, NO_LOGPROBS, 0.0, True, bytes(16), NOTHING)

    def group(kind: str, *won: bool) -> Group:
        task = Task(kind, kind, "")
        return Group(task, tuple(Trajectory(task, (step,), 0.0, w, "limit") for w in won))

    found = rollout_metrics([group("look", True, False), group("heat", False), group("look", True, True)])
    by_kind = {name: value for name, value in found.items() if name.startswith("rollout/success")}
    assert by_kind == {"rollout/success": 0.6, "rollout/success/heat": 0.0, "rollout/success/look": 0.75}


def test_no_penalty_and_no_rows_have_no_such_groups() -> None:
    assert share(AdvantageConfig(invalid_penalty=0.0), garbage(0, 1), garbage(0, 2)) == 0.0
    rows = RowTable.from_groups([])
    assert advantage_metrics(rows, estimate(rows, AdvantageConfig()), AdvantageConfig())[SHARE] == 0.0


def test_the_warning_has_the_share_and_what_to_do_and_is_silent_where_it_does_not_matter() -> None:
    said = penalty_warning({SHARE: 0.75}, AdvantageConfig())
    assert said.startswith("warning: in 75% of the task groups ")
    assert "advantage.normalization mean" in said
    assert "\n" not in said
    assert penalty_warning({SHARE: 0.5}, AdvantageConfig()) == ""
    assert penalty_warning({SHARE: 1.0}, AdvantageConfig(normalization="mean")) == ""
    for estimator in ("rloo", "reinforce_plus_plus_baseline"):  # which do not divide by the task's deviation
        assert penalty_warning({SHARE: 1.0}, AdvantageConfig(estimator=estimator)) == ""


def test_spread_and_share_of_equal_groups_are_of_the_scores_within_a_group() -> None:
    def group(*scores: float) -> Group:
        task = Task(str(scores), "kind", "")
        three = np.zeros(3, np.int32)
        step = Step(NOTHING, three, three.astype(np.float32), 0.0, True, bytes(16), three)
        return Group(task, tuple(Trajectory(task, (step,), score, score > 0, "limit") for score in scores))

    metrics = rollout_metrics([group(0, 2), group(1, 1), group(0, 0), group(3, 3)])
    assert metrics["rollout/score_std"] == 0.25  # of 1, 0, 0 and 0
    assert metrics["rollout/equal_groups"] == 0.75
    assert metrics["rollout/response_tokens"] == 3
