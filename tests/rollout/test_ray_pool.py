"""Environments as Ray actors on a cluster of two nodes, real raylets on this machine; one node is lost."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import playing
import pytest
from collecting import collect, collector
from fake_engine import UP, FakeEngine

from envs.base import Task
from gigpo_mega.config import EngineConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout import cluster as ray_cluster
from gigpo_mega.rollout.engines.actors import RayServer
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
