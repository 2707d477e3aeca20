"""How many groups a collection brings in, which of them count, and what is kept when it is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import collecting
import pytest
from fake_engine import FAIL, UP, WORDS, FakeEngine

from envs.base import Task
from gigpo_mega.config import RolloutConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.collector import Collector, CollectStats
from gigpo_mega.rollout.engines.base import EngineError, EngineLost, Sampling
from gigpo_mega.rollout.group_player import Attempt
from gigpo_mega.rollout.pools.process import ProcessPool
from gigpo_mega.rollout.quota import Quota, missing, returns_differ
from gigpo_mega.types import Group, Trajectory
from tests.helpers import wait_for
from tests.tiny import random_steps

SIZE = 4
Make = Callable[..., Collector]


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Make]:
    pool = ProcessPool("fake_environment:KIND", {}, workers=2)

    def make(engine: Any, retries: int = 0) -> Collector:
        return collecting.collector(engine, pool, tmp_path, concurrency=16, retries=retries, name="count")

    yield make
    pool.close()


def counting(goals: Iterator[int]) -> Iterator[tuple[int, Task]]:
    return ((n, Task(f"{n}-to-{goal}", "count", str(goal))) for n, goal in enumerate(goals))


class FakeLuck(FakeEngine):
    """Half of its first words lose, so that returns differ; but it counts to 3 without a mistake."""

    def __init__(self, seed: int = 0) -> None:
        random = Random(seed)
        three = WORDS.split().index("3") + 4
        super().__init__(lambda ids: UP if three in ids or random.random() < 0.5 else FAIL)


def group(*scores: float) -> Group:
    task = Task("a", "count", "1")
    return Group(task, tuple(Trajectory(task, (), score, score > 0, "failure") for score in scores))


def test_returns_differ_says_whether_the_episodes_can_be_compared() -> None:
    assert returns_differ(group(0.0, 0.0, 10.0))
    assert not returns_differ(group(10.0, 10.0))
    assert not returns_differ(group(0.0))
    short, long = group(10.0, 10.0).trajectories
    lengths = (replace(short, steps=random_steps(1, seed=0)), replace(long, steps=random_steps(3, seed=0)))
    assert not returns_differ(Group(short.task, lengths))


def test_tasks_that_are_finished_keep_their_numbers() -> None:
    tasks = [Task(name, "count", "1") for name in "abcd"]
    assert [(n, t.id) for n, t in missing(tasks, [0, 2, 9])] == [(1, "b"), (3, "d")]


@pytest.mark.parametrize(("spares", "kept"), [(9, 3), (2, 2)])
def test_groups_of_equal_returns_are_replaced_while_there_are_spares(
    spares: int, kept: int, collector: Make
) -> None:
    """Every other task is solved by all its episodes; after the spares it is done with fewer groups."""
    held: dict[int, Group] = {}
    goals = iter([3, 1, 3, 3, 1, 3, 1] + [3] * 99)
    quota = Quota(3, counting(goals), spares=spares, counts=returns_differ, keep=held.__setitem__)
    made = collector(FakeLuck())
    found = made.collect(quota, SIZE, Sampling())
    assert list(found) == sorted(found)
    assert held == found
    counted = [number for number, group in found.items() if returns_differ(group)]
    assert len(counted) == kept
    assert all(group.task.source == ("1" if n in counted else "3") for n, group in found.items())
    assert made.stats.refused == len(found) - kept <= spares + 1
    assert made.stats.episodes == kept * SIZE


@pytest.mark.parametrize(("equal", "differing", "places", "spares"), [
    (0, 0, 5, 2), (1, 0, 5, 1), (2, 1, 4, 0), (3, 1, 3, 0), (5, 2, 0, 0),
])  # fmt: skip
def test_an_iteration_that_goes_on_plays_no_more_groups_than_one_that_was_not_stopped(
    equal: int, differing: int, places: int, spares: int
) -> None:
    rollout = RolloutConfig(groups=4, oversample=1, equal_returns="replace", spare_groups=2)
    begun = dict(enumerate([group(1.0, 1.0)] * equal + [group(1.0, 0.0)] * differing))
    tasks = [Task(name, "count", "1") for name in "abcdefghi"]
    quota = Quota.rest(rollout, tasks, begun, lambda number, group: None)
    assert (quota.needed, quota.needed + quota.ahead, quota.spares) == (4 - differing, places, spares)
    assert next(quota.tasks)[0] == equal + differing


def test_an_iteration_that_goes_on_may_drop_as_many_groups_as_one_that_was_not_stopped(
    collector: Make,
) -> None:
    """With 3 of 4 groups there, the second one that failed used to end the run."""
    rollout = RolloutConfig(groups=4)
    begun = dict(enumerate([group(1.0, 0.0)] * 3))
    sources = ["1"] * 3 + ["no number", "no number", "1"]
    tasks = [Task(f"count-{n}", "count", source) for n, source in enumerate(sources)]

    async def play(attempt: Attempt) -> tuple[Trajectory, ...]:
        if attempt.task.source != "1":
            attempt.end(EngineError("too hot"))
            return ()
        return group(1.0, 0.0).trajectories

    made: Any = collector(FakeEngine())
    made._player.play = play
    found = made.collect(Quota.rest(rollout, tasks, begun, lambda number, group: None), 2, Sampling())
    assert (list(found), len(made.stats.dropped)) == ([5], 2)


def test_groups_still_under_way_when_enough_are_complete_are_given_up(collector: Make) -> None:
    made = collector(engine := FakeEngine())
    quota = Quota(3, counting(iter([1, 9, 1, 1])), ahead=1)
    found = made.collect(quota, SIZE, Sampling())
    assert [group.task.source for group in found.values()] == ["1", "1", "1"]
    assert (made.stats.cut, made.stats.episodes) == (1, 3 * SIZE)
    assert engine.calls < 3 * SIZE + 9 * SIZE  # those of the fourth end after the step they are in
    again = made.collect(Quota.of([Task("c", "count", "9")]), SIZE, Sampling())  # no call is left over
    assert [len(t.steps) for t in again[0].trajectories] == [9] * SIZE


def test_a_group_that_is_complete_when_enough_count_is_not_kept(collector: Make) -> None:
    held, seen = list[int](), list[CollectStats]()

    def slow(number: int, group: Group) -> None:
        wait_for(lambda: seen and seen[-1].episodes == 4)  # until the other one is complete
        held.append(number)

    quota = Quota(1, counting(iter([1, 1])), ahead=1, keep=slow)
    found = collector(FakeEngine()).collect(quota, 2, Sampling(), seen.append)
    assert list(found) == held
    assert len(held) == 1


def test_an_engine_that_is_lost_ends_a_collection_and_the_next_one_goes_on(collector: Make) -> None:
    """No episode is tried again, because no engine is left. What was complete is not played again."""
    held: dict[int, Group] = {}

    def kept(number: int, group: Group) -> None:
        held[number] = group
        engine.policy = lost

    def lost(ids: list[int]) -> int:
        raise EngineLost("no engine is left")

    engine, goals = FakeEngine(), [1, 4, 4]
    made = collector(engine, retries=5)
    with pytest.raises(EngineLost, match="no engine is left"):
        made.collect(Quota(3, counting(iter(goals)), keep=kept), SIZE, Sampling())
    assert made.stats.retries == 0
    assert list(held) == [0]
    engine.policy = lambda ids: UP
    tasks = [task for _, task in counting(iter(goals))]
    rest = made.collect(Quota(2, missing(tasks, held)), SIZE, Sampling())
    assert list(rest) == [1, 2]


def test_a_group_that_cannot_be_kept_ends_the_collection(collector: Make) -> None:
    def full(number: int, group: Group) -> None:
        raise UserError("no space")

    with pytest.raises(UserError, match=r"^no space$"):
        collector(FakeEngine()).collect(Quota(2, counting(count(1)), keep=full), SIZE, Sampling())


@pytest.mark.parametrize("seed", range(12))
def test_whatever_fails_every_group_is_whole_and_no_number_is_taken_twice(seed: int, collector: Make) -> None:
    """Random lengths, failures of the engine, groups of equal returns, groups ahead, an earlier try."""
    random = Random(seed)
    luck, held, failures = FakeLuck(seed), dict[int, Group](), iter(range(random.randrange(6)))
    policy = luck.policy

    def flaky(ids: list[int]) -> int:
        if random.random() < 0.05 and next(failures, None) is not None:
            raise EngineError("the engine hiccups")
        return policy(ids)

    def keep(number: int, group: Group) -> None:
        assert number not in held
        held[number] = group

    luck.policy = flaky
    goals = [random.choice((1, 2, 3, 8)) for _ in range(60)]
    tasks = [Task(f"{n}-to-{goal}", "count", str(goal)) for n, goal in enumerate(goals)]
    needed, ahead, before = random.randrange(1, 7), random.randrange(3), {1, 4}
    quota = Quota(needed, missing(tasks, before), ahead, spares=50, counts=returns_differ, keep=keep)
    made = collector(luck, retries=1)
    found = made.collect(quota, SIZE, Sampling())
    assert found == held
    assert not before & set(found)
    assert sum(map(returns_differ, found.values())) == needed
    assert all(group.task == tasks[number] for number, group in found.items())
    assert {len(group.trajectories) for group in found.values()} == {SIZE}
    assert made.stats.refused == len(found) - needed
    assert made.stats.episodes == needed * SIZE
    missed = set(range(max(found))) - set(found) - before  # dropped after failures, or given up
    assert len(missed) <= len(made.stats.dropped) + made.stats.cut


def test_nobody_forms_the_repr_of_what_was_collected(
    collector: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio.run would, of what its coroutine returns: most of a collection's CPU time."""
    formed: list[object] = []
    monkeypatch.setattr(Group, "__repr__", lambda group: str(formed.append(group)))
    assert collector(FakeEngine()).collect(Quota.of([Task("a", "count", "1")]), SIZE, Sampling())
    assert formed == []
