"""From records to a summary: which seeds are compared, and what is averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gigpo_mega.errors import UserError
from gigpo_mega.experiment.analysis import analyze, mean_curve
from gigpo_mega.experiment.spec import Spec

SPEC = Spec(
    recipe=Path("configs/quickstart.yaml"),
    seeds=[1, 2, 3],
    variants={"gigpo": {}, "grpo": {}, "rloo": {}},
    settings={},
    references=["grpo"],
)


def record(variant: str, seed: int, after: float, training: list[float], **curves: list[float | None]) -> Any:
    return {
        "variant": variant,
        "seed": seed,
        "device": "FakeDevice",
        "attempts": [{"commit": f"{seed}" * 40}],
        "before": {"success": 0.25},
        "config": {"rollout.groups": 16, "rollout.spare_groups": 4},
        "after": {"success": after, "kinds": {"look": {"success": after / 2}}},
        "curves": {"rollout/success": training, **curves},
    }


def test_differences_are_of_the_seeds_that_both_have():
    """GRPO lacks seed 3, GiGPO lacks none: seed 3 counts for GiGPO's mean, not for the difference."""
    found = analyze(SPEC, [
        record("gigpo", 1, 0.50, [0.3, 0.5]), record("grpo", 1, 0.40, [0.3, 0.3]),
        record("gigpo", 2, 0.70, [0.3, 0.7]), record("grpo", 2, 0.66, [0.3, 0.5]),
        record("gigpo", 3, 0.99, [0.3, 0.9]),
    ])  # fmt: skip
    assert found["variants"]["gigpo"]["panel"]["value"] == pytest.approx((0.5 + 0.7 + 0.99) / 3)
    assert found["variants"]["gigpo"]["kinds"]["look"] == pytest.approx((0.5 + 0.7 + 0.99) / 6)
    panel, training = (found["differences"][kind]["grpo"] for kind in ("panel", "training"))
    assert panel["gigpo"]["by_seed"] == pytest.approx({"1": 0.1, "2": 0.04})
    assert panel["gigpo"]["seeds"] == 2
    assert panel["gigpo"]["mean"]["value"] == pytest.approx(0.07)
    assert panel["gigpo"]["deviation"] == pytest.approx(np.std([0.1, 0.04], ddof=1))
    assert training["gigpo"]["by_seed"] == pytest.approx({"1": 0.1, "2": 0.1})
    assert list(panel) == ["gigpo"]  # GRPO is the reference, RLOO has no runs


def test_a_summary_says_what_it_is_of():
    records = [record(name, 2, 0.5, [0.5]) for name in SPEC.variants] + [record("gigpo", 1, 0.5, [0.5])]
    found = analyze(SPEC, records)
    assert (found["runs"], found["planned"], found["complete_seeds"]) == (4, 9, [2])
    assert found["commits"] == {"2" * 40: 3, "1" * 40: 1}


def test_an_experiment_without_runs_cannot_be_compared():
    with pytest.raises(UserError, match="no runs yet"):
        analyze(SPEC, [record("coldstart", 1, 0.5, [0.5])])


def test_groups_in_whose_place_others_were_played_count_as_played():
    """Beyond the spare ones a group is refused, and none is played in its place."""
    replaced: list[float | None] = [0.0, 3.0, 7.0]
    records = [record("gigpo", 1, 0.5, [0.5] * 3, **{"rollout/groups_replaced": replaced})]
    older = record("grpo", 1, 0.5, [0.5] * 3)
    found = analyze(SPEC, [*records, older])["variants"]
    assert (found["gigpo"]["groups"], found["grpo"]["groups"]) == (3 * 16 + 3 + 4, 3 * 16)


def test_a_mechanism_is_told_at_the_start_and_over_the_last_quarter():
    rising: list[float | None] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, None, 0.8]
    records = [record("gigpo", seed, 0.5, [0.5] * 8, **{"anchor/singletons": rising}) for seed in (1, 2)]
    found = analyze(SPEC, records)["variants"]["gigpo"]["mechanism"]
    assert found["anchor/singletons"] == pytest.approx({"first": 0.1, "last": 0.8, "all": 2.9 / 7})
    assert found["loss/entropy"] == {"first": None, "last": None, "all": None}


def test_an_iteration_without_a_complete_group_does_not_count():
    training: list[Any] = [0.5, None, 0.7]
    found = analyze(SPEC, [record("gigpo", 1, 0.5, training)])["variants"]["gigpo"]
    assert found["training"]["value"] == pytest.approx(0.6)


def test_a_mean_curve_is_of_the_seeds_that_have_a_value():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])
    assert mean_curve(values) == pytest.approx([2.0, 4.0, np.nan], nan_ok=True)


def test_runs_may_have_played_other_kinds_of_tasks():
    records = [record("gigpo", 1, 0.5, [0.5]), record("gigpo", 2, 0.7, [0.5]), record("grpo", 1, 0.5, [0.5])]
    records[1]["after"]["kinds"] = {"pick": {"success": 0.9}}
    kinds = analyze(SPEC, records)["variants"]["gigpo"]["kinds"]
    assert kinds == pytest.approx({"look": 0.25, "pick": 0.9})
