"""The learning rate: what each update uses, from the first to the last."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, cast

import pytest
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from gigpo_mega.config import OptimizerConfig
from gigpo_mega.learner.schedule import learning_rate


def rates(cfg: OptimizerConfig, updates: int) -> list[float]:
    return [learning_rate(cfg, update, 0.0) for update in range(updates)]


def test_warm_up_is_linear_and_never_zero() -> None:
    assert rates(OptimizerConfig(lr=4.0, warmup_updates=3), 5) == [1.0, 2.0, 3.0, 4.0, 4.0]


def test_decay_over_updates_ends_at_min_lr() -> None:
    cfg = OptimizerConfig(lr=5.0, min_lr=1.0, schedule="linear", decay_updates=4)
    assert rates(cfg, 6) == [5.0, 4.0, 3.0, 2.0, 1.0, 1.0]
    warm = OptimizerConfig(lr=6.0, min_lr=2.0, schedule="linear", warmup_updates=2, decay_updates=6)
    assert rates(warm, 8) == [2.0, 4.0, 6.0, 5.0, 4.0, 3.0, 2.0, 2.0]


def test_cosine_is_half_way_in_the_middle() -> None:
    cfg = OptimizerConfig(lr=3.0, min_lr=1.0, schedule="cosine", decay_updates=8)
    found = rates(cfg, 9)
    assert found[0] == 3.0
    assert found[4] == pytest.approx(2.0, abs=1e-12)
    assert found[8] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_over_a_run_begins_at_lr_and_ends_at_min_lr_whatever_the_updates(schedule: str) -> None:
    cfg = OptimizerConfig(lr=3e-4, min_lr=3e-5, schedule=schedule)  # type: ignore[arg-type]
    iterations = 36
    found = [learning_rate(cfg, 7 * i, i / (iterations - 1)) for i in range(iterations)]
    assert found[0] == pytest.approx(3e-4, rel=1e-12)
    assert found[-1] == pytest.approx(3e-5, rel=1e-12)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_over_a_run_begins_where_the_warm_up_ends(schedule: str) -> None:
    """Five updates in each of 40 iterations: the rate jumped down from the peak by what had passed before."""
    cfg = OptimizerConfig(lr=1.0, min_lr=0.1, schedule=schedule, warmup_updates=100)  # type: ignore[arg-type]
    found = [learning_rate(cfg, update, update // 5 / 39) for update in range(200)]
    assert found[99:101] == pytest.approx([100 / 101, 1.0], rel=1e-12)
    assert found[100:] == sorted(found[100:], reverse=True)
    largest = max(abs(after - before) for before, after in pairwise(found))
    assert largest < 0.08  # what five updates decay at most
    assert found[-1] == pytest.approx(0.1, abs=1e-12)


class FakeOptimizer:
    """What megatron's scheduler writes to."""

    param_groups: ClassVar[list[Any]] = [{"default_config": True}]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_over_a_run_is_megatrons_of_its_updates_if_every_iteration_has_as_many(schedule: str) -> None:
    cfg = OptimizerConfig(lr=1.0, min_lr=0.2, schedule=schedule, warmup_updates=30)  # type: ignore[arg-type]
    theirs = OptimizerParamScheduler(
        cast(Any, FakeOptimizer()), init_lr=0.0, max_lr=1.0, min_lr=0.2, lr_warmup_steps=30,
        lr_decay_steps=100, lr_decay_style=schedule, start_wd=0.0, end_wd=0.0, wd_incr_steps=0,
        wd_incr_style="constant",
    )  # fmt: skip
    theirs.step(30)
    for update in range(30, 101):
        [group] = theirs.optimizer.param_groups
        assert learning_rate(cfg, update, update / 100) == pytest.approx(group["lr"], abs=1e-12), update
        theirs.step(1)


def test_a_warm_up_as_long_as_the_run_reaches_lr() -> None:
    cfg = OptimizerConfig(lr=4.0, schedule="linear", warmup_updates=3)
    assert [learning_rate(cfg, update, update / 3) for update in range(4)] == [1.0, 2.0, 3.0, 4.0]


def test_a_constant_rate_stays() -> None:
    assert {learning_rate(OptimizerConfig(lr=0.5), u, p) for u, p in ((0, 0.0), (9, 0.3), (99, 1.0))} == {0.5}
