"""Environments and engines that fail: episodes are played again, groups stay whole or are replaced.

Real worker processes are killed and hang; only the engine is a fake.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import collecting
import psutil
import pytest
from collecting import collect
from fake_engine import UP, FakeEngine

from envs.base import EnvError, EnvUnavailable, Task
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.collector import Collector, CollectStats
from gigpo_mega.rollout.engines.base import EngineError, Sampling
from gigpo_mega.rollout.pools.base import EnvironmentLost
from gigpo_mega.rollout.pools.process import ProcessPool
from gigpo_mega.rollout.summary import engine_metrics
from gigpo_mega.types import Group
from tests.helpers import wait_for

SIZE, TIMEOUT = 4, 1.0
Make = Callable[..., Collector]


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Make]:
    """Makes a collector over FakeFlaky in two processes, whose calls may take a second."""
    pools: list[ProcessPool] = []

    def make(engine: Any = None, retries: int = 1, concurrency: int = 8) -> Collector:
        pool = ProcessPool("fake_environment:FLAKY", {"folder": str(tmp_path)}, 2, step_timeout=TIMEOUT)
        pools.append(pool)
        options = {"concurrency": concurrency, "retries": retries, "name": "flaky"}
        return collecting.collector(engine or FakeEngine(), pool, tmp_path, **options)

    yield make
    for pool in pools:
        pool.close()


def task(name: str, fault: str = "", goal: int = 3) -> Task:
    return Task(name, "count", f"{goal} {fault}")


def ledger(folder: Path) -> list[tuple[str, str, str]]:
    """Episode, task and event of every line."""
    return [(e, t, what) for e, t, what in map(str.split, (folder / "ledger").read_text().splitlines())]


def check(groups: tuple[Group, ...], names: list[str], folder: Path) -> None:
    """Groups of these tasks are complete, and each of their episodes is one that an environment ended."""
    assert [group.task.id for group in groups] == names
    ended = Counter((name, task_id) for name, task_id, event in ledger(folder) if event == "done")
    played: list[str] = []
    for group in groups:
        assert len(group.trajectories) == SIZE
        for trajectory in group.trajectories:
            assert trajectory.task == group.task
            seen = [step.observation.partition(" ") for step in trajectory.steps]
            assert [text for _, _, text in seen] == ["count 0", "count 1", "count 2"]
            (episode,) = {name for name, _, _ in seen}  # no steps of another try
            assert ended[episode, group.task.id] == 1
            assert (trajectory.score, trajectory.success) == (10.0, True)
            played.append(episode)
    assert len(set(played)) == len(played) == len(names) * SIZE


@pytest.mark.parametrize("fault", ["step2 kill", "step2 hang", "step2 error", "step2 unavailable",
                                   "reset kill", "reset hang", "reset unavailable"])  # fmt: skip
def test_an_episode_whose_environment_fails_once_is_played_again(
    fault: str, collector: Make, tmp_path: Path
) -> None:
    tasks = [task("a"), task("b", f"{fault} 1"), task("c"), task("d")]
    made = collector()
    check(collect(made, tasks, SIZE, Sampling()), ["a", "b", "c", "d"], tmp_path)
    assert made.stats.dropped == ()
    shared = "kill" in fault or "hang" in fault  # with those of the process
    assert 1 <= made.stats.retries <= (8 if shared else 1)
    assert (made.stats.episodes, made.stats.total) == (16, 16)


@pytest.mark.parametrize("kind", ["kill", "hang", "error"])
def test_a_group_that_keeps_failing_is_replaced_and_costs_no_other_group(
    kind: str, collector: Make, tmp_path: Path
) -> None:
    tasks = [task("a"), task("bad", f"step2 {kind} 99"), task("c"), task("d")]
    reports: list[CollectStats] = []
    spare = iter([task("new"), task("one more"), task("and another")])
    made = collector()
    groups = collect(made, tasks, SIZE, Sampling(), reports.append, spare)
    check(groups, ["a", "c", "d", "new"], tmp_path)  # "a", "c" and "d" outlived their processes
    assert next(spare).id == "and another"  # one task is looked ahead
    (reason,) = made.stats.dropped
    assert "environment flaky, task bad, step 2: " in reason
    assert {"kill": "died with status -9", "hang": "was killed: a call took more than environment.step_timeo",
            "error": "the server is gone"}[kind] in reason  # fmt: skip
    assert (reports[-1].episodes, made.stats.episodes, made.stats.total) == (16, 16, 16)
    metrics = engine_metrics(made.stats)
    assert metrics["rollout/groups_dropped"] == 1.0
    assert metrics["rollout/episode_retries"] == made.stats.retries >= 1


def test_a_replacement_can_fail_too(collector: Make, tmp_path: Path) -> None:
    spare = [task("worse", "step2 error 99"), task("good")]
    made = collector(retries=0)
    bad = task("bad", "step2 error 1")
    check(collect(made, [task("a"), bad], SIZE, Sampling(), None, spare), ["a", "good"], tmp_path)
    assert [reason.partition(":")[0] for reason in made.stats.dropped] == ["task bad", "task worse"]


def test_more_dropped_groups_than_asked_for_stop_with_one_line(collector: Make) -> None:
    tasks = [task(name, "step2 error 999") for name in "ab"]
    with pytest.raises(UserError) as caught:
        collect(collector(), tasks, SIZE, spare=(task(f"new{n}", "step2 error 999") for n in count()))
    line = str(caught.value)
    assert line.startswith(
        "rollout: 3 groups were dropped, more than the 2 of an iteration, because episodes failed for more "
        "than rollout.retries; the last one was of task "
    )
    assert line.endswith(", step 2: the server is gone")
    assert "\n" not in line


def test_a_panel_has_no_replacements_so_that_a_failure_is_raised(collector: Make) -> None:
    with pytest.raises(EnvUnavailable, match=r"^environment flaky, task bad, step 2: the server is gone$"):
        collect(collector(), [task("a"), task("bad", "step2 error 99")], SIZE, Sampling())


def test_a_task_that_cannot_be_played_is_no_failure_to_be_tried_again(collector: Make) -> None:
    made = collector()
    with pytest.raises(EnvError, match=r"^environment flaky, task bad, reset: the server is gone$"):
        collect(made, [task("a"), task("bad", "reset error 1")], SIZE, Sampling(), None, [task("new")])
    assert made.stats.retries == 0


def test_the_next_try_is_in_a_new_environment_and_the_failed_one_is_closed(
    collector: Make, tmp_path: Path
) -> None:
    made = collector(concurrency=1)
    collect(made, [task("a"), task("bad", "step2 error 1"), task("c")], 1, Sampling())
    process = ledger(tmp_path)[0][0].partition("-")[0]
    found = [(name.removeprefix(process), task_id, event) for name, task_id, event in ledger(tmp_path)]
    assert found == [
        ("-1-1", "a", "reset"), ("-1-1", "a", "done"), ("-1-2", "bad", "reset"), ("-1-2", "bad", "closed"),
        ("-2-1", "bad", "reset"), ("-2-1", "bad", "done"), ("-2-2", "c", "reset"), ("-2-2", "c", "done"),
    ]  # fmt: skip


@pytest.mark.parametrize("fails", [1, 999])
def test_an_engine_that_fails(fails: int, collector: Make, tmp_path: Path) -> None:
    engine, answers = FakeEngine(), count()

    def policy(ids: list[int]) -> int:
        if 10 <= next(answers) < 10 + fails:
            raise EngineError("the engine is gone")
        return UP

    engine.policy = policy
    made, tasks = collector(engine), [task("a"), task("b"), task("c")]
    if fails == 1:
        groups = collect(made, tasks, SIZE, spare=(task(f"new{n}") for n in count()))
        check(groups, ["a", "b", "c"], tmp_path)
        assert made.stats.retries == 1
        return
    with pytest.raises(UserError, match=r"^rollout: 4 groups were dropped, .*: the engine is gone$"):
        collect(made, tasks, SIZE, Sampling(), None, (task(f"new{n}") for n in count()))


@pytest.mark.parametrize("retries", [1, 0])
def test_a_worker_that_is_killed_while_no_environment_is_at_work_counts_for_all_it_holds(
    retries: int, collector: Make, tmp_path: Path
) -> None:
    engine, killed = FakeEngine(), list[int]()

    def policy(ids: list[int]) -> int:
        if engine.calls >= 5 and not killed:  # of the second episode
            killed.extend(worker.process.pid for worker in pool._workers)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return UP

    engine.policy = policy
    made, tasks = collector(engine, retries, concurrency=1), [task("a"), task("b")]
    player: Any = made._player
    pool: Any = player._player.pool
    if retries == 0:
        with pytest.raises(
            EnvironmentLost, match=r"task a, step \d: environment worker \d+ died with status -9"
        ):
            collect(made, tasks, SIZE, Sampling())
        return
    check(collect(made, tasks, SIZE, Sampling()), ["a", "b"], tmp_path)
    assert made.stats.retries == 1


def test_waiting_behind_neighbors_is_no_hang(tmp_path: Path) -> None:
    pool = ProcessPool("fake_environment:FLAKY", {"folder": str(tmp_path), "delay": 0.1}, 1, step_timeout=0.8)

    async def together() -> list[Any]:
        async with pool:
            await asyncio.gather(*(pool.reset(slot, task(f"t{slot}")) for slot in range(12)))
            return await asyncio.gather(*(pool.step(slot, "up") for slot in range(12)))

    try:
        assert [found.reward for found in asyncio.run(together())] == [0.0] * 12  # after 1.2 s
    finally:
        pool.close()


def test_a_process_that_hangs_ends_with_what_it_started_and_its_neighbors_are_not_at_fault(
    tmp_path: Path,
) -> None:
    pool = ProcessPool("fake_environment:FLAKY", {"folder": str(tmp_path)}, 1, step_timeout=TIMEOUT)
    (worker,) = (psutil.Process(worker.process.pid) for worker in pool._workers)

    async def hang() -> list[Any]:
        async with pool:
            await pool.reset(0, task("neighbor"))
            await pool.reset(2, task("other"))
            started = time.monotonic()
            calls = [pool.reset(1, task("bad", "reset hang 1")), pool.step(2, "up")]
            raised = await asyncio.gather(*calls, return_exceptions=True)
            assert TIMEOUT < time.monotonic() - started < 5 * TIMEOUT
            with pytest.raises(EnvironmentLost) as lost:  # it was not in a call when its process ended
                await pool.step(0, "up")
            await pool.reset(0, task("neighbor"))
            assert (await pool.step(0, "up")).observation.text.endswith("count 1")
            return [*raised, lost.value]

    try:
        found = asyncio.run(hang())
    finally:
        pool.close()
    assert [(type(error), error.at_fault) for error in found] == [
        (EnvironmentLost, True), (EnvironmentLost, False), (EnvironmentLost, False)]  # fmt: skip
    assert {str(error) for error in found} == {
        f"environment worker {worker.pid} was killed: a call took more than environment.step_timeout 1 s"
    }
    assert not [p for p in psutil.process_iter(["cmdline"]) if "1000.25" in (p.info["cmdline"] or [])]


OWNER = """
import asyncio, sys
from envs.base import Task
from gigpo_mega.rollout.pools.process import ProcessPool

async def hang():
    async with ProcessPool("fake_environment:FLAKY", {"folder": sys.argv[1]}, 1) as pool:
        await pool.reset(0, Task("bad", "count", "3 reset hang 1"))

asyncio.run(hang())
"""


def test_a_hung_worker_does_not_outlive_a_killed_run(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{Path(__file__).parent}"
    }
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], env=environment) as owner:
        wait_for((tmp_path / "bad.0").exists)
        (worker,) = psutil.Process(owner.pid).children()
        hung = worker.children()
        owner.kill()
    _, alive = psutil.wait_procs([worker, *hung], timeout=10)
    for process in alive:
        process.kill()
    assert alive == []
