"""Separate engines whose nodes are lost one after the other, as the run and the weights see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gigpo_mega.config import Config, EngineConfig, WeightsConfig
from gigpo_mega.rollout.cluster import Actor, ActorLost
from gigpo_mega.rollout.engines import actors
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.run import engines as engines_module
from gigpo_mega.run.engines import NodeEngines
from gigpo_mega.stack import Stack


class FakeActor(Actor):
    """An actor on a node of its own, which can be lost; only what Ray does is faked."""

    made: ClassVar[list[FakeActor]] = []  # in the order of the servers
    places = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.lost, self._handle = False, None
        self.on_start: Callable[[], None] = lambda: None
        FakeActor.made.append(self)

    def start(self) -> None:
        if self._handle is None:
            FakeActor.places += 1
            self._handle, self.lost = f"http://node{FakeActor.places}", False
            self.on_start()

    def ask(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        if self.lost:
            raise ActorLost("its node died", at_start=False)
        return {"url": self._handle}[method]

    def close(self) -> None:
        self._handle = None

    def lose(self) -> None:
        self.lost = True


class FakePush:
    """Knows where the weights go."""

    costs_an_engine: ClassVar[bool] = False  # making one, which measures, takes a while

    def __init__(self, config: Any, shape: Any, urls: list[str], *_: Any, **__: Any) -> None:
        self.urls = list(urls)
        if FakePush.costs_an_engine:
            FakeActor.made[0].lose()

    def move(self, urls: list[str]) -> None:
        self.urls = list(urls)


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeEngines:
    monkeypatch.setattr(FakeActor, "made", [])
    monkeypatch.setattr(FakeActor, "places", 0)
    monkeypatch.setattr(actors, "Actor", FakeActor)
    monkeypatch.setattr(engines_module, "WeightPush", FakePush)
    engine, weights = EngineConfig(placement="separate", replicas=2), WeightsConfig(transport="disk")
    shape: Any = None
    cfg = Config(output=tmp_path, engine=engine, weights=weights)
    return NodeEngines(cfg, Launch(Stack("cpu", "")), tmp_path, shape)


def pushed_to(engines: NodeEngines) -> list[str]:
    push: Any = engines._pushing()
    return push.urls


def test_an_engine_that_moves_while_another_is_started_again_is_reported_too(engines: NodeEngines) -> None:
    assert engines.launch() == pushed_to(engines) == ["http://node1", "http://node2"]
    first, second = FakeActor.made
    first.on_start = second.lose
    moved = engines.relaunch(["http://node1"])
    assert moved == {"http://node1": "http://node3", "http://node2": "http://node4"}
    assert pushed_to(engines) == ["http://node3", "http://node4"]


def test_an_engine_is_found_by_the_address_that_it_had_before_its_last_move(engines: NodeEngines) -> None:
    engines.launch()
    engines.relaunch(["http://node1"])
    assert engines.relaunch(["http://node1", "http://node2"]) == {
        "http://node1": "http://node3",  # which was started again since it was lost there
        "http://node2": "http://node4",
    }
    assert pushed_to(engines) == ["http://node3", "http://node4"]
    assert engines.relaunch(["http://node3"])["http://node1"] == "http://node5"


def test_the_run_and_the_push_know_an_engine_by_one_address_if_it_is_lost_as_they_start(
    engines: NodeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakePush, "costs_an_engine", True)
    assert engines.launch() == pushed_to(engines) == ["http://node1", "http://node2"]
    assert FakeActor.places == 2
