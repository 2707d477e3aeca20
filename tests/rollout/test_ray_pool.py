"""Environments as Ray actors on a cluster of two nodes, real raylets on this machine; one node is lost.

What Ray raises if an actor is killed for its node's memory comes from fakes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import playing
import pytest
from collecting import collect, collector
from fake_engine import UP, FakeEngine

from envs.base import Task
from gigpo_mega.config import EngineConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout import cluster as ray_cluster
from gigpo_mega.rollout.cluster import Actor, ActorLost
from gigpo_mega.rollout.engines.actors import RayServer
from gigpo_mega.rollout.engines.base import EngineLost
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.pools import actors
from gigpo_mega.rollout.pools.actors import RayPool
from gigpo_mega.rollout.pools.base import EnvironmentLost, PoolError
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.stack import Stack
from gigpo_mega.types import Group
from tests.helpers import wait_for

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.distributed
SIZE = 4
NODE: dict[str, Any] = {"object_store_memory": 80 << 20}
ENDS = [
    ray.exceptions.ActorDiedError(),
    ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."),
    ray.exceptions.NodeDiedError("the node is gone"),
    ray.exceptions.ObjectLostError("00", None, ""),
]
BUGS = [
    ray.exceptions.RayTaskError("answer", "its traceback", ValueError("a bug")).as_instanceof_cause(),
    TypeError("cannot be pickled"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with room for two workers, and what a test adds."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), *filter(None, [before])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    made = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 2})
    os.environ["RAY_ADDRESS"] = str(made.address)
    yield made
    ray.shutdown()
    made.shutdown()
    del os.environ["RAY_ADDRESS"], os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def pool(cluster: Any, tmp_path: Path) -> Iterator[Callable[..., RayPool]]:
    made: list[RayPool] = []

    def make(workers: int, step_timeout: float | None = None, kind: str = "FLAKY", **more: float) -> RayPool:
        options = {"folder": str(tmp_path), **more} if kind == "FLAKY" else {}
        made.append(RayPool(f"fake_environment:{kind}", options, workers, step_timeout))
        return made[-1]

    yield make
    for one in made:
        one.close()


def task(name: str, fault: str = "", goal: int = 3) -> Task:
    return Task(name, "count", f"{goal} {fault}")


def test_a_node_that_is_lost_costs_time_and_nothing_else(
    cluster: Any, pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    node = cluster.add_node(**NODE, num_cpus=2)
    engine, lost = FakeEngine(), list[str]()

    def policy(ids: list[int]) -> int:
        if engine.calls >= 20 and not lost:
            lost.append(node.node_id)
            cluster.remove_node(node, allow_graceful=False)
        return UP

    play = collector(engine, pool(2, delay=0.2), tmp_path, retries=2, name="flaky")
    names = ["a", "b", "c", "d"]
    collect(play, [task(name) for name in names], SIZE)
    assert len(nodes_of_actors()) == 2
    engine.calls, engine.policy = 0, policy
    groups = collect(play, [task(name) for name in names], SIZE)
    assert lost != [cluster.head_node.node_id]
    wait_for(lambda: nodes_of_actors() == {cluster.head_node.node_id})  # the cluster's own view is late
    assert [group.task.id for group in groups] == names
    assert play.stats.retries > 0
    ended = [line.split() for line in (tmp_path / "ledger").read_text().splitlines()]
    done = {episode for episode, _, event in ended if event == "done"}
    played: list[str] = []
    for trajectory in (t for group in groups for t in group.trajectories):
        (episode,) = {step.observation.partition(" ")[0] for step in trajectory.steps}
        played.append(episode)
        assert len(trajectory.steps) == 3
    assert len(set(played)) == 4 * SIZE
    assert set(played) <= done


def test_workers_play_on_several_nodes_and_one_that_is_lost_costs_time_and_nothing_else(
    cluster: Any, tmp_path: Path
) -> None:
    node, lost = cluster.add_node(**NODE, num_cpus=2), list[str]()
    goals = (3, 5, 1, 4, 2, 6, 5, 4)

    def lose(number: int, group: Group) -> None:
        if not lost:
            assert len(nodes_of_actors()) == 2
            lost.append(node.node_id)
            cluster.remove_node(node, allow_graceful=False)

    with playing.servers() as urls:
        with playing.session(tmp_path, urls, workers=1) as alone:
            expected = playing.content(alone.collect(Quota.of(playing.tasks(*goals)), SIZE, 1.0))
        with playing.session(tmp_path, urls, pool="ray", options={"delay": 0.1}) as made:
            quota = Quota(len(goals), enumerate(playing.tasks(*goals)), keep=lose)
            groups = made.collect(quota, SIZE, 1.0)
            assert made.stats.episodes == SIZE * len(goals)
            assert made.stats.steps >= SIZE * sum(goals)
    assert lost
    assert playing.content(groups) == expected


def nodes_of_actors() -> set[str]:
    """Where the living actors are."""
    from ray._private.state import actors as table

    return {actor["Address"]["NodeID"] for actor in table().values() if actor["State"] == "ALIVE"}


def test_a_call_that_hangs_ends_its_actor_alone(cluster: Any, pool: Callable[..., RayPool]) -> None:
    made = pool(2, step_timeout=2.0)

    async def play() -> list[Any]:
        async with made:
            await asyncio.gather(*(made.reset(slot, task(f"t{slot}")) for slot in range(4)))
            calls = [made.reset(0, task("bad", "reset hang 1")), made.step(2, "up"), made.step(1, "up")]
            found = await asyncio.gather(*calls, return_exceptions=True)
            await made.reset(2, task("again"))
            return [*found, await made.step(2, "up"), await made.step(3, "up")]

    hung, neighbor, other, again, last = asyncio.run(play())
    assert (type(hung), hung.at_fault) == (EnvironmentLost, True)
    assert (type(neighbor), neighbor.at_fault) == (EnvironmentLost, False)
    assert "was killed: a call took more than environment.step_timeout 2 s" in str(hung)
    assert [found.observation.text.partition(" ")[2] for found in (other, again, last)] == ["count 1"] * 3


@pytest.mark.parametrize("step_timeout", [None, 2.0])
def test_a_call_that_ends_its_actor_is_charged_and_its_neighbors_are_not(
    step_timeout: float | None, cluster: Any, pool: Callable[..., RayPool]
) -> None:
    """Even if the watch saw a neighbor at work a moment before."""
    made = pool(1, step_timeout, delay=1.0)

    async def play() -> list[Any]:
        async with made:
            await asyncio.gather(*(made.reset(slot, task(f"t{slot}")) for slot in (0, 2)))
            await made.reset(1, task("bad", "step1 kill 1"))
            steps = (made.step(slot, "up") for slot in range(3))
            found = await asyncio.gather(*steps, return_exceptions=True)
            return [*found, *await asyncio.gather(made.step(0, "up"), return_exceptions=True)]

    before, bad, after, again = asyncio.run(play())
    assert before.observation.text.endswith("count 1")  # its answer is not lost with the actor
    assert [(type(lost), lost.at_fault) for lost in (bad, after, again)] == [
        (EnvironmentLost, True), (EnvironmentLost, False), (EnvironmentLost, False),
    ]  # fmt: skip


class FakeHandle:
    """An actor whose calls raise the next of `errors`, None for an answer; awaited or by `FakeRay.get`."""

    def __init__(self, errors: list[Exception | None]) -> None:
        self.answer, self.at_work = FakeMethod(self, (0, True, "seen")), FakeMethod(self, (None, 0.0))
        self.close = FakeMethod(self, None)
        self.errors, self.killed = errors, False


class FakeMethod:
    def __init__(self, handle: FakeHandle, answer: Any) -> None:
        self._handle, self._answer = handle, answer

    def options(self, **_: Any) -> FakeMethod:
        return self

    def remote(self, *arguments: Any) -> Any:
        return self._called(*arguments)

    async def _called(self, *arguments: Any) -> Any:
        error = self._handle.errors.pop(0) if self._handle.errors else None
        if error is not None:
            raise error
        return (arguments[0][0], *self._answer[1:]) if arguments else self._answer


class FakeRay(SimpleNamespace):
    """Ray with actors that fail: each takes the next list of `errors`."""

    def __init__(self, *errors: list[Exception | None]) -> None:
        left = list(errors)
        self.made: list[FakeHandle] = []
        self.exceptions = ray.exceptions

        def remote(*_: Any) -> FakeHandle:
            self.made.append(FakeHandle(left.pop(0) if left else []))
            return self.made[-1]

        host = SimpleNamespace(remote=remote)
        host.options = lambda **_: host
        self.remote = lambda *_, **__: host if _ else lambda _: host

    def is_initialized(self) -> bool:
        return True

    def kill(self, handle: FakeHandle) -> None:
        handle.killed = True

    def wait(self, calls: Any, **_: Any) -> None:
        for call in calls:
            call.close()

    def get(self, call: Any, timeout: float | None = None) -> Any:
        return asyncio.run(call)


@pytest.mark.parametrize("end", ENDS)
def test_whatever_ray_says_of_an_actors_end_those_who_wait_are_told(
    end: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor that the memory monitor kills raises no RayActorError."""
    fake = FakeRay([end], [None, None, end])  # before it is of use; in its second call
    monkeypatch.setattr(actors, "connected", lambda _: fake)
    made = RayPool("fake_environment:KIND", {}, workers=1, step_timeout=60.0)

    async def play() -> list[Any]:
        async with asyncio.timeout(10), made:
            await made.reset(0, task("a"))
            found = await asyncio.gather(made.step(0, "up"), made.reset(1, task("b")), return_exceptions=True)
            return [*found, await made.reset(0, task("a"))]

    lost, neighbor, again = asyncio.run(play())
    assert [(type(one), one.at_fault) for one in (lost, neighbor)] == [
        (EnvironmentLost, True), (EnvironmentLost, False),
    ]  # fmt: skip
    assert str(lost).startswith("environment worker (Ray actor) died, with its process or its node: ")
    assert again == "seen"
    assert [handle.killed for handle in fake.made] == [False, True, False]


@pytest.mark.parametrize("end", ENDS)
def test_the_watch_goes_on_whatever_ray_says_of_an_actors_end(
    end: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "connected", lambda _: FakeRay([None, end]))
    made = RayPool("fake_environment:KIND", {}, workers=1, step_timeout=60.0)

    async def look() -> Any:
        async with made:
            return await made._at_work(made._workers[0])

    assert asyncio.run(look()) == (None, 0.0)


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_a_call_of_an_actor_reaches_its_caller(
    bug: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRay([None, bug])
    monkeypatch.setattr(actors, "connected", lambda _: fake)
    made = RayPool("fake_environment:KIND", {}, workers=1)

    async def play() -> list[Any]:
        async with asyncio.timeout(10), made:
            calls = (made.reset(slot, task("a")) for slot in (0, 1))
            return await asyncio.gather(*calls, return_exceptions=True)

    failed, neighbor = asyncio.run(play())
    assert type(failed) is PoolError
    assert str(bug) in str(failed)
    assert "Traceback" in str(failed)
    assert neighbor == "seen"
    assert not fake.made[0].killed


@pytest.mark.parametrize("end", ENDS)
def test_an_actor_that_ray_kills_is_lost_to_who_asks_it(
    end: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_cluster, "connected", lambda _: FakeRay([end, *BUGS, None], []))
    actor = Actor("rollout.pool ray", "a test", "none", object)
    actor.start()
    with pytest.raises(ActorLost) as lost:
        actor.ask("at_work")
    assert not lost.value.at_start
    for error in (ValueError, TypeError):
        with pytest.raises(error):
            actor.ask("at_work")
    assert actor.ask("at_work") == (None, 0.0)
    server = RayServer(tmp_path, EngineConfig(), tmp_path, Launch(Stack("cpu", "")))
    server._actor._handle = SimpleNamespace(ready=FakeMethod(FakeHandle([end]), True))
    with pytest.raises(EngineLost, match="ended with its node or Ray actor"):
        server.ready(0.0)


def test_environments_are_closed_with_the_pool_but_not_waited_for_without_end(
    cluster: Any, pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    made = pool(2)

    async def play() -> None:
        async with made:
            await asyncio.gather(*(made.reset(slot, task(f"t{slot}")) for slot in range(4)))
            hangs = asyncio.create_task(made.reset(1, task("bad", "reset hang 1")))
            await asyncio.sleep(1)  # its actor is at work and cannot close anything
            hangs.cancel()

    asyncio.run(play())
    begin = time.monotonic()
    made.close()
    made.close()
    assert time.monotonic() - begin < 30
    lines = [line.split() for line in (tmp_path / "ledger").read_text().splitlines()]
    assert sorted(name for _, name, event in lines if event == "closed") == ["t0", "t2"]


def test_an_exception_in_an_environment_comes_home_with_its_traceback(
    cluster: Any, pool: Callable[..., RayPool]
) -> None:
    made = pool(1, kind="KIND")

    async def play() -> None:
        async with made:
            await made.reset(0, task("a", goal=3))
            await made.step(0, "raise")

    with pytest.raises(PoolError, match=r"ZeroDivisionError[\s\S]*fake_environment\.py"):
        asyncio.run(play())


def test_a_cluster_without_room_is_one_line(
    cluster: Any, pool: Callable[..., RayPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "ROOM_SECONDS", 3.0)
    made = pool(3)

    async def enter() -> None:
        async with made:
            pass

    with pytest.raises(UserError, match=r"no CPU for an environment worker within 3 s \(\d.* 3 are needed"):
        asyncio.run(enter())


def test_a_server_that_cannot_be_placed_or_started_says_why(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, log = EngineConfig(placement="separate", replicas=1), tmp_path / "sglang.log"
    for stack, message in (
        (Stack("cuda", "", 8), r"the cluster had no node with 1 free GPU\(s\) for an SGLang server within 3"),
        (Stack("cpu", ""), "an SGLang server cannot be started: .*has no config.json"),
    ):
        server = RayServer(tmp_path, config, log, Launch(stack))
        server.launch()
        monkeypatch.setattr(ray_cluster, "ROOM_SECONDS", 3.0 if stack.cuda else 60.0)
        with pytest.raises(UserError, match=f"(?s)^engine.placement separate: {message}"):
            server.placed()
        server.close()
        server.close()
