"""Engines that fail again while they are started again."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gigpo_mega.config import Config, EngineConfig, WeightsConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.base import EngineLost
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.engines.server import SGLangServer
from gigpo_mega.rollout.engines.servers import Servers
from gigpo_mega.run import ranks
from gigpo_mega.run import run as run_module
from gigpo_mega.run.leader import Leader
from gigpo_mega.run.run import Run
from gigpo_mega.stack import Stack


class FakeEngines:
    """Engines of which `failures` starts fail, within a budget of `restarts`; each start is elsewhere."""

    def __init__(self, failures: int, restarts: int) -> None:
        self.failures, self.left, self.relaunched = failures, restarts, list[list[str]]()

    def relaunch(self, urls: Any) -> dict[str, str]:
        if not self.left:
            raise UserError("the restarts of engine.restarts are used up")
        self.left -= 1
        self.relaunched.append(sorted(urls))
        return {url: f"{url}+" for url in urls}

    def wait(self, urls: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise EngineLost("the SGLang server ended with status 137")


def run(engines: FakeEngines, monkeypatch: pytest.MonkeyPatch, **engine: Any) -> Run:
    monkeypatch.setattr(ranks, "_waiting", lambda layout: nullcontext())
    made: Any = Run.__new__(Run)
    made.learner = SimpleNamespace(layout=SimpleNamespace(leader=True, world=1))
    made._engines, made._cfg = engines, Config(engine=EngineConfig(**engine))
    made._signals = SimpleNamespace(interrupting=lambda act, *words: act(*words))
    made._urls = ["http://a", "http://b"]
    return made


def test_an_engine_that_fails_while_it_starts_again_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = FakeEngines(failures=1, restarts=3)
    made = run(engines, monkeypatch)
    made._revive({"http://a": "it died"})
    assert engines.relaunched == [["http://a"], ["http://a+"]]
    assert made._urls == ["http://a++", "http://b"]
    assert capsys.readouterr().err.splitlines() == [
        "engine http://a is started again: it died",
        "engine http://a+ is started again: the SGLang server ended with status 137",
    ]


@pytest.mark.parametrize("shares", [True, False])
def test_all_ranks_give_memory_back_before_an_engine_beside_them_starts_or_takes_weights(
    shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, done, lost = run(FakeEngines(0, 1), monkeypatch), list[str](), {"http://a": "it died"}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setattr(run_module, "meet", lambda layout: done.append("met"))
    answers: dict[Any, Any] = {Leader.lost_engines: lost, Leader.readmit_engines: None}
    stubs = {
        "_shares_gpu": shares, "_pushed": 0, "_on_leader": lambda act, *words: answers[act],
        "_revive": lambda lost: done.append("started"), "_push_once": lambda: done.append("pushed"),
    }  # fmt: skip
    for name, stub in stubs.items():
        setattr(made, name, stub)
    made.learner.iteration = 1
    made._push_until_taken()
    assert done == [*(["emptied", "met"] if shares else []), "started", "pushed"]
    done.clear()
    lost.clear()
    made._push_until_taken()
    assert done == []  # the engines have these weights


def test_a_run_that_broadcasts_on_gpus_tells_nccl_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> None:
        raise UserError(f"NCCL_CUMEM_ENABLE is {os.environ.get('NCCL_CUMEM_ENABLE')}")

    monkeypatch.setenv("NCCL_CUMEM_ENABLE", "1")  # put back at the end
    checked = SimpleNamespace(model=None, shape=None)
    monkeypatch.setattr(run_module, "check", lambda cfg, stack: checked)
    monkeypatch.setattr(run_module.layouts, "initialize", start)
    broadcast = Config(weights=WeightsConfig(transport="broadcast"))
    for cfg, stack, said in (
        (broadcast, Stack("cuda", ""), "1"), (Config(), Stack("cuda", ""), None),
        (broadcast, Stack("cpu", ""), None), (broadcast, Stack("cuda", ""), "0"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"NCCL_CUMEM_ENABLE is {said}"):
            Run(cfg, stack)
        monkeypatch.delenv("NCCL_CUMEM_ENABLE", raising=False)


def test_it_is_not_started_again_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = FakeEngines(failures=99, restarts=3)
    with pytest.raises(UserError, match=r"engine\.restarts are used up"):
        run(engines, monkeypatch)._revive({"http://a": "it died"})
    assert len(engines.relaunched) == 3


def test_servers_of_the_user_are_waited_for_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = FakeEngines(failures=99, restarts=99)
    monkeypatch.setattr(engines, "relaunch", lambda urls: {})
    with pytest.raises(UserError, match=r"ended with status 137; start it, then --resume"):
        run(engines, monkeypatch, url="http://a")._revive({"http://a": "it died"})
    assert engines.failures == 98
    assert capsys.readouterr().err == "engine http://a is waited for: it died\n"


def test_only_the_engine_that_fails_as_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a round used to be, and each start counted."""
    engines, waits = FakeEngines(failures=0, restarts=9), list[list[str]]()

    def wait(urls: Any) -> None:
        waits.append(sorted(urls))
        if len(waits) == 1:
            error = EngineLost("the SGLang server ended with status 137")
            error.url = "http://b+"
            raise error

    monkeypatch.setattr(engines, "wait", wait)
    made = run(engines, monkeypatch)
    made._revive({"http://a": "it died", "http://b": "it died"})
    assert engines.relaunched == [["http://a", "http://b"], ["http://b+"]]
    assert waits == [["http://a+", "http://b+"], ["http://a+", "http://b++"]]
    assert made._urls == ["http://a+", "http://b++"]


def test_each_engine_has_its_own_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four that died together used to end a run with the default of three."""
    started: list[str] = []
    monkeypatch.setattr(SGLangServer, "relaunch", lambda self: started.append(self.url))
    monkeypatch.setattr(SGLangServer, "last_error", lambda self: "out of memory")
    config = EngineConfig(replicas=8, restarts=2)
    servers = Servers(tmp_path, config, tmp_path, Launch(Stack("cpu", "")))
    try:
        for round_ in (1, 2):
            servers.relaunch(servers.urls)
            assert len(started) == 8 * round_
        with pytest.raises(UserError, match=r"its 2 restarts of engine\.restarts are used up: out of memory"):
            servers.relaunch(servers.urls[:1])
    finally:
        servers.close()


def test_engines_are_asked_for_their_versions_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four on a node that is gone took two minutes at every push."""
    together, lost = Barrier(3, timeout=30), dict[str, str]()

    def version(url: str) -> str:
        together.wait()
        if url == "c":
            raise OSError("timed out")
        return "7"

    monkeypatch.setattr("gigpo_mega.run.leader.weight_version", version)
    leader: Any = Leader.__new__(Leader)
    leader._urls = ["a", "b", "c"]
    leader._session = SimpleNamespace(lost=lost, lose=lost.__setitem__)
    assert leader.lost_engines() == {"c": "c: timed out"}
