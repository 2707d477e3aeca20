"""Rollouts ahead of the learner: what may begin, what is kept, how they end, engines that come and go."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import SIZE, content, servers, session, tasks

from envs.base import Task
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.ahead import Ahead
from gigpo_mega.rollout.engines.base import EngineLost, Sampling
from gigpo_mega.rollout.engines.fleet import Served
from gigpo_mega.rollout.group_player import Attempt, Counts, Terms
from gigpo_mega.rollout.quota import Quota, missing
from gigpo_mega.telemetry.timeline import Span
from gigpo_mega.types import Group, Step, Trajectory
from tests.helpers import wait_for

GROUPS = 3
Place = tuple[int, int]  # iteration, number


class FakeGroupPlayer:
    """Plays groups of one episode, of two steps that are sampled by `version`, for as long as `seed` says."""

    def __init__(self, seed: int = 0, at_once: int = 4, fails: Place | None = None) -> None:
        self.version = -1
        self.begun: list[Place] = []
        self.fails = fails
        self.open = False
        self.spoken_to: list[str] = []  # names of threads
        self._counts = Counts()
        self.engines: Sequence[Served] = (Served(),)
        self._random, self._at_once = random.Random(seed), at_once

    @asynccontextmanager
    async def opened(self, terms: Terms, on_change: Callable[[], None]) -> AsyncIterator[None]:
        self._free, self._on_change = asyncio.Semaphore(self._at_once), on_change
        self.open = True
        try:
            yield
        finally:
            self.open = False

    async def play(self, attempt: Attempt) -> Sequence[Trajectory]:
        place = divmod(attempt.number, 1 << 32)
        async with self._free:
            self.begun.append(place)
            steps = [await self._step(), await self._step()]
            if place == self.fails:
                self.fails = None
                raise EngineLost("no engine is left")
        self._counts.steps += 2
        self._counts.finished[attempt.number] = 1
        self._on_change()
        return (Trajectory(attempt.task, tuple(steps), 0.0, False, "limit"),)

    async def _step(self) -> Step:
        for _ in range(self._random.randrange(6)):
            await asyncio.sleep(0 if self._random.random() < 0.9 else 1e-3)
        none = np.zeros(1, np.int32)
        versions = np.full(1, self.version, np.int32)
        return Step(none, none, none.astype(np.float32), 0.0, True, bytes(16), versions)

    @property
    def counts(self) -> Counts:
        return replace(self._counts)

    def spans(self) -> Sequence[Span]:
        return ()

    def lose(self, number: int, reason: str) -> None:
        self.spoken_to.append(threading.current_thread().name)

    def readmit(self, urls: Sequence[str]) -> None:
        self.spoken_to.append(threading.current_thread().name)

    def hold(self, held: bool) -> None:
        self.spoken_to.append(threading.current_thread().name)


class FakeRun:
    """The groups that were kept, and a learner that takes them one iteration after another."""

    def __init__(self, player: FakeGroupPlayer, max_staleness: int) -> None:
        self.player, self.max_staleness = player, max_staleness
        self.kept: dict[Place, Group] = {}

    def quota(self, iteration: int) -> Quota:
        done = [number for of, number in self.kept if of == iteration]
        every = [Task(f"{iteration}-{number}", "kind", "") for number in range(GROUPS)]

        def keep(number: int, group: Group) -> None:
            assert (iteration, number) not in self.kept
            self.kept[iteration, number] = group

        return Quota(GROUPS - len(done), missing(every, done), keep=keep)

    def ahead(self, first: int, last: int) -> Ahead:
        terms = Terms(1, GROUPS * (1 + self.max_staleness), Sampling())
        return Ahead(self.player, terms, range(first, last), self.quota, self.max_staleness)

    def push(self, ahead: Ahead, version: int) -> None:
        self.player.version = version
        ahead.admit(version)

    def check(self, iterations: int) -> None:
        """Every group is there once, and no token of one is too old or too new for its iteration."""
        assert sorted(self.kept) == [(i, n) for i in range(iterations) for n in range(GROUPS)]
        for (iteration, number), group in self.kept.items():
            assert group.task.id == f"{iteration}-{number}"
            (episode,) = group.trajectories
            for step in episode.steps:
                assert iteration - self.max_staleness <= step.versions[0] <= iteration


@given(
    seed=st.integers(0, 2**32),
    max_staleness=st.integers(0, 3),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 5e-4, 2e-3]), min_size=5, max_size=5),
)
@settings(max_examples=60)
def test_no_token_is_older_than_the_bound_whatever_takes_how_long(
    seed: int, max_staleness: int, pauses: list[float]
) -> None:
    run = FakeRun(FakeGroupPlayer(seed), max_staleness)
    ahead = run.ahead(0, len(pauses))
    for iteration, seconds in enumerate(pauses):
        run.push(ahead, iteration)
        found = ahead.wait(iteration)
        assert found is not None
        assert {number for of, number in run.kept if of == iteration} == set(range(GROUPS))
        time.sleep(seconds)  # the update
    run.check(len(pauses))
    assert ahead.over
    assert Counter(run.player.begun).most_common(1)[0][1] == 1
    order = [iteration for iteration, _ in run.player.begun]
    assert order == sorted(order)


@given(seed=st.integers(0, 2**32), max_staleness=st.integers(0, 2), cut=st.floats(0, 4e-3),
       back=st.integers(0, 2))  # fmt: skip
@settings(max_examples=60)
def test_a_resumed_run_neither_repeats_nor_loses_a_group(
    seed: int, max_staleness: int, cut: float, back: int
) -> None:
    """It is cut off at any moment and goes on from a checkpoint of the iteration it was in, or of before."""
    run = FakeRun(FakeGroupPlayer(seed), max_staleness)
    ahead, reached = run.ahead(0, 5), 0
    end = time.monotonic() + cut
    while reached < 5 and time.monotonic() < end:
        run.push(ahead, reached)
        ahead.wait(reached)
        reached += 1
    ahead.close()
    assert not run.player.open
    before, start = dict(run.kept), max(0, min(reached, 4) - back)
    ahead = run.ahead(start, 5)
    for iteration in range(start, 5):
        run.push(ahead, iteration)
        ahead.wait(iteration)
    assert before.items() <= run.kept.items()
    run.check(5)


def test_what_the_bound_allows_is_played_without_waiting_for_the_learner_and_no_more() -> None:
    run = FakeRun(FakeGroupPlayer(), max_staleness=2)
    ahead = run.ahead(0, 9)
    run.push(ahead, 0)
    for _ in range(500):
        time.sleep(0.01 if len(run.kept) < 3 * GROUPS else 1e-4)
    assert {iteration for iteration, _ in run.player.begun} == {0, 1, 2}
    assert ahead.wait(1) is not None
    ahead.close()
    ahead.close()
    assert ahead.over
    assert not run.player.open


def test_counts_are_those_since_the_iteration_before() -> None:
    run = FakeRun(FakeGroupPlayer(), max_staleness=1)
    ahead, steps, reports = run.ahead(0, 4), 0, list[int]()
    for iteration in range(4):
        run.push(ahead, iteration)
        found = ahead.wait(iteration, lambda stats: reports.append(stats.episodes))
        assert found is not None
        assert (found[0].episodes, found[0].total) == (GROUPS, GROUPS)
        steps += found[0].steps
    assert steps == 2 * 4 * GROUPS
    assert max(reports, default=0) <= GROUPS


def test_an_iteration_that_was_played_before_is_not_played_again() -> None:
    run = FakeRun(FakeGroupPlayer(), max_staleness=1)
    run.kept = {(0, n): Group(Task(f"0-{n}", "kind", ""), ()) for n in range(GROUPS)}
    ahead = run.ahead(0, 2)
    run.push(ahead, 0)
    assert ahead.wait(0) is None
    assert ahead.wait(1) is not None
    assert {iteration for iteration, _ in run.player.begun} == {1}


def test_a_failure_ends_all_and_reaches_who_waits_and_what_was_kept_stays() -> None:
    run = FakeRun(FakeGroupPlayer(fails=(1, 1)), max_staleness=1)
    ahead = run.ahead(0, 3)
    run.push(ahead, 0)
    with pytest.raises(EngineLost, match="no engine is left"):
        ahead.wait(1)
    assert ahead.over
    assert not run.player.open
    ahead.admit(1)  # harmless
    before = set(run.kept)
    ahead = run.ahead(0, 3)
    for iteration in range(3):
        run.push(ahead, iteration)
        ahead.wait(iteration)
    run.check(3)
    assert max(Counter(run.player.begun)[place] for place in before) == 1


def test_a_damaged_journal_ends_it() -> None:
    def damaged(iteration: int) -> Quota:
        raise UserError("cannot read it")

    ahead = Ahead(FakeGroupPlayer(), Terms(1, 1, Sampling()), range(2), damaged, 0)
    ahead.admit(0)
    with pytest.raises(UserError, match="cannot read it"):
        ahead.wait(0)


def test_engines_are_lost_and_let_serve_where_requests_are_made() -> None:
    run = FakeRun(FakeGroupPlayer(), max_staleness=0)
    ahead = run.ahead(0, 1)
    ahead.lose(0, "it died")
    assert run.player.spoken_to == ["rollout"]  # it has been done when `lose` returns
    ahead.readmit([])
    ahead.hold(True)
    run.push(ahead, 0)
    ahead.wait(0)
    assert run.player.spoken_to == ["rollout"] * 3
    ahead.lose(0, "it died")  # though nothing is played any more
    assert run.player.spoken_to[3:] == ["MainThread"]


def test_engines_that_serve_again_after_all_were_lost_are_not_lost_again(
    urls: list[str], tmp_path: Path
) -> None:
    """They were lost while the learner learned: what played ahead has ended, and nobody has waited for it."""
    kept: list[dict[int, Group]] = [{}, {}, {}]

    def quota(iteration: int) -> Quota:
        each = tasks(1, 1) if iteration == 0 else tasks(9, 9)
        return Quota(2, missing(each, [*kept[iteration]]), keep=kept[iteration].__setitem__)

    slow = {"delay": 0.05}
    with session(tmp_path, urls, 1, "KIND", slow, max_staleness=1, group_size=SIZE, groups=2) as made:
        made.collect_ahead(range(3), quota)
        for url in urls:
            made.lose(url, "it died")
        assert made.lost == dict.fromkeys(urls, "it died")
        wait_for(lambda: made._ahead is not None and made._ahead.over)
        made.readmit(urls)
        assert made.lost == {}
        with pytest.raises(EngineLost, match="no engine is left"):
            made.collect_ahead(range(1, 3), quota)  # of what has ended
        assert made.lost == {}
        for iteration in (1, 2):
            made.collect_ahead(range(iteration, 3), quota)
    assert [len(groups) for groups in kept] == [2, 2, 2]


@pytest.fixture
def urls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{Path(__file__).parent}")
    with servers() as found:
        yield found


@pytest.mark.parametrize("workers", [1, 2])
def test_groups_are_those_of_one_iteration_after_another_and_engines_come_and_go(
    workers: int, urls: list[str], tmp_path: Path
) -> None:
    goals = [(2, 3), (1, 4), (3, 2), (2, 1)]
    kept: list[dict[int, Group]] = [{} for _ in goals]
    spans: list[int] = []

    def quota(iteration: int) -> Quota:
        each = tasks(*goals[iteration])
        return Quota(len(each), enumerate(each), keep=kept[iteration].__setitem__)

    def play(made: Any, iteration: int) -> list[int]:
        assert made.collect_ahead(range(iteration, len(goals)), quota)
        spans.append(len(made.spans()))
        return [engine.requests for engine in made.engines]

    with session(tmp_path, urls, workers, group_size=SIZE, groups=2) as made:
        turns = [made.collect(Quota.of(tasks(*each)), SIZE, 1.0) for each in goals]
        assert sum(play(made, 0)) == SIZE * sum(goals[0])
        made.lose(urls[0], "it died")
        assert play(made, 1) == [0, SIZE * sum(goals[1])]
        assert made.lost == {urls[0]: "it died"}
        made.readmit(urls)
        assert min(play(made, 2)) > 0
        assert made.lost == {}
        assert sum(play(made, 3)) == SIZE * sum(goals[3])
        assert [content(groups) for groups in kept] == [content(groups) for groups in turns]
        assert min(spans) > 0  # what ran is told while the next groups are played
        assert not made._player.counts.finished  # of groups that are played no longer
        assert made.collect(Quota.of(tasks(2)), SIZE, 1.0).keys() == {0}  # the panel, between two stretches
