"""The environment pool: many environments in few processes, and what happens when one of them breaks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
from fake_environment import FakeCounter

from envs import registry
from envs.base import EnvError, EnvironmentKind, SeedTasks, Task, Transition
from envs.registry import lookup, register
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.pools.actors import RayPool
from gigpo_mega.rollout.pools.base import PoolError
from gigpo_mega.rollout.pools.host import Request
from gigpo_mega.rollout.pools.process import ProcessPool, ProcessWorker

NAME = "fake_environment:KIND"


def task(goal: int | str) -> Task:
    return Task(f"count-{goal}", "count", str(goal))


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    pool = ProcessPool(NAME, {}, workers=2)
    yield pool
    pool.close()


async def play(pool: ProcessPool, slot: int, goal: int) -> list[Transition]:
    await pool.reset(slot, task(goal))
    return [await pool.step(slot, "up") for _ in range(goal)]


def test_slots_are_independent(pool: ProcessPool) -> None:
    async def run() -> list[list[Transition]]:
        async with pool:
            return await asyncio.gather(*(play(pool, slot, slot + 1) for slot in range(16)))

    for _ in range(2):  # a pool outlives the event loop it was used in
        episodes = asyncio.run(run())
        assert [len(episode) for episode in episodes] == list(range(1, 17))
        assert [episode[-1].reward for episode in episodes] == [10.0] * 16
        assert [episode[-1].observation.text for episode in episodes] == [f"count {n}" for n in range(1, 17)]
        assert not any(step.done for episode in episodes for step in episode[:-1])


def test_environments_of_one_worker_share_messages(
    pool: ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for all that a turn of the event loop asks of it."""
    sent, send = list[list[int]](), pool._send

    def noting(worker: ProcessWorker, batch: list[Request]) -> None:
        sent.append([slot for _, slot, *_ in batch])
        send(worker, batch)

    async def run() -> None:
        async with pool:
            await asyncio.gather(*(pool.reset(slot, task(10**6)) for slot in range(64)))
            monkeypatch.setattr(pool, "_send", noting)
            for _ in range(3):
                await asyncio.gather(*(pool.step(slot, "up") for slot in range(64)))

    asyncio.run(run())
    assert sent == [[*range(0, 64, 2)], [*range(1, 64, 2)]] * 3


def test_an_unusable_task_is_the_environments_own_error(pool: ProcessPool) -> None:
    async def run() -> None:
        async with pool:
            with pytest.raises(EnvError, match="no such game: count-missing"):
                await pool.reset(0, task("missing"))
            assert (await play(pool, 0, 2))[-1].success

    asyncio.run(run())


def test_a_bug_in_an_environment_keeps_its_traceback(pool: ProcessPool) -> None:
    async def run() -> None:
        async with pool:
            await pool.reset(0, task(3))
            with pytest.raises(PoolError, match=r"ZeroDivisionError[\s\S]*fake_environment.py"):
                await pool.step(0, "raise")

    asyncio.run(run())


def test_a_dead_worker_fails_its_callers_and_is_replaced(pool: ProcessPool) -> None:
    async def crash() -> None:
        async with pool:
            await pool.reset(0, task(3))
            with pytest.raises(UserError, match=r"environment worker \d+ died with status 3"):
                await pool.step(0, "crash")
            with pytest.raises(UserError, match="died with status 3"):
                await pool.step(0, "up")
            assert (await play(pool, 1, 1))[-1].success  # the other worker lives
            assert (await play(pool, 0, 2))[-1].success

    asyncio.run(crash())


def test_a_worker_is_dead_though_what_it_has_forked_holds_its_connection(pool: ProcessPool) -> None:
    """It used to be waited for without end: the connection was not closed."""

    async def crash() -> None:
        async with pool:
            await pool.reset(0, task(3))
            with pytest.raises(UserError, match=r"environment worker \d+ died with status 3"):
                await asyncio.wait_for(pool.step(0, "leave a child"), timeout=30)
            assert (await play(pool, 0, 2))[-1].success

    asyncio.run(crash())


def test_a_cancelled_call_leaves_no_late_answer(pool: ProcessPool) -> None:
    slow = ProcessPool(NAME, {"delay": 0.5}, workers=1)

    async def cancel() -> None:
        async with slow:
            await slow.reset(0, task(2))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(slow.step(0, "up"), timeout=0.05)

    async def again() -> Transition:
        async with slow:
            await slow.reset(0, task(1))
            return await slow.step(0, "up")

    asyncio.run(cancel())
    assert asyncio.run(again()).success
    slow.close()


def test_a_call_after_a_cancelled_one_gets_its_own_answer() -> None:
    slow = ProcessPool(NAME, {"delay": 0.2}, workers=1)

    async def run() -> list[str]:
        async with slow:
            await asyncio.gather(slow.reset(0, task(9)), slow.reset(1, task(9)))
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(slow.step(0, "up"), timeout=0.05)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(slow.step(1, "raise"), timeout=0.05)
            seen = [await slow.step(0, "up"), await slow.step(0, "up"), await slow.step(1, "up")]
            await slow.reset(0, task(9))
            return [transition.observation.text for transition in [*seen, await slow.step(0, "up")]]

    try:
        assert asyncio.run(run()) == ["count 3", "count 4", "count 1", "count 1"]
        assert slow._workers[0].process.poll() is None  # it owed no answer
    finally:
        slow.close()


def test_close_leaves_no_process_behind() -> None:
    before = set(psutil.Process().children(recursive=True))
    pool = ProcessPool(NAME, {}, workers=2)
    assert len(set(psutil.Process().children(recursive=True)) - before) == 2
    pool.close()
    pool.close()
    assert set(psutil.Process().children(recursive=True)) <= before


def won(name: str, goal: int = 2) -> bool:
    """Whether a pool of environments called `name` plays an episode to its end."""

    async def run() -> bool:
        async with pool:
            return (await play(pool, 0, goal))[-1].success

    pool = ProcessPool(name, {}, workers=1)
    try:
        return asyncio.run(run())
    finally:
        pool.close()


@pytest.mark.parametrize("last", ["up", "crash"])
def test_nothing_that_an_environment_has_started_stays(last: str) -> None:
    seconds = f"77.{os.getpid():07}"  # other test runs on this machine start theirs

    def children() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]

    async def run() -> None:
        async with pool:
            for slot in range(3):
                await pool.reset(slot, task(3))
            assert len(children()) == 3
            with nullcontext() if last == "up" else pytest.raises(UserError, match="died with status 3"):
                await pool.step(0, last)

    pool = ProcessPool("noisy_environment:KIND", {"seconds": seconds}, workers=1)
    try:
        asyncio.run(run())
    finally:
        pool.close()
    assert psutil.wait_procs(children(), timeout=5)[1] == []


def test_what_is_registered_here_is_known_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {})
    register("counter", FakeCounter)
    assert won("counter")
    assert isinstance(lookup("counter").tasks(train=3), SeedTasks)
    with pytest.raises(EnvError, match="environment 'counter' is already registered"):
        register("counter", FakeCounter)
    with pytest.raises(EnvError, match="environment 'sokoban' is already registered"):
        register("sokoban", FakeCounter)


def test_what_workers_cannot_import_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {})
    register("nameless", EnvironmentKind(lambda: FakeCounter()))
    with pytest.raises(EnvError, match=r"nameless: worker processes cannot import .*<lambda>"):
        ProcessPool("nameless", {}, workers=1)
    register("mine", type("Mine", (FakeCounter,), {"__module__": "__main__"}))
    with pytest.raises(EnvError, match="'Mine' of __main__; define it at the top level"):
        ProcessPool("mine", {}, workers=1)


def test_an_installed_package_offers_its_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "counters-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: counters\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[gigpo_mega.environments]\ncounted = their_counter:KIND\n")
    (tmp_path / "their_counter.py").write_text("from fake_environment import KIND\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert won("counted")


def test_a_worker_that_cannot_find_its_environment_says_so_in_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match="died with status 2; see its message above"):
        won("nowhere_to_be_found:KIND")
    assert capfd.readouterr().err.count("\n") == 1


TORCHRUN = """
import asyncio, sys
from gigpo_mega.program import run_main
from gigpo_mega.rollout.pools.process import ProcessPool
from envs.base import Task

async def play():
    pool = ProcessPool("resetting:Env", {}, 1)
    try:
        async with pool:
            await pool.reset(0, Task("a", "k", "s"))
    finally:
        pool.close()

run_main(lambda: asyncio.run(play()))
"""


@pytest.mark.parametrize(
    "raised",
    [
        "ConnectionResetError(104, 'Connection reset by peer')",
        "RuntimeError('Connection closed by peer [127.0.0.1]:29500')",
        "TimeoutError('socket timeout')",
        "OSError('remote process exited')",
    ],
)
def test_an_environment_s_lost_connection_is_not_told_as_a_lost_rank(tmp_path: Path, raised: str) -> None:
    (tmp_path / "resetting.py").write_text(
        f"class Env:\n    def reset(self, task):\n        raise {raised}\n    def step(self, action): ...\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "WORLD_SIZE": "1", "RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TORCHRUN], env=environment, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "another rank" not in done.stderr
    assert "resetting.py" in done.stderr
    assert raised.partition("(")[0] in done.stderr.strip().splitlines()[-1]


def test_a_pool_of_actors_without_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"^rollout\.pool ray needs Ray, which is not installed: pip inst"):
        RayPool(NAME, {}, workers=1)
