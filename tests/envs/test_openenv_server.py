"""The adapter to OpenEnv against a server of openenv-core; skipped if the package is not installed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from importlib import import_module
from random import Random
from typing import Any

import pytest
import uvicorn

pytest.importorskip("openenv.core")

from envs.adapters.openenv import OpenEnvEnvironment
from envs.base import EnvError, Task

library: Any = import_module("openenv.core.env_server")


class FakeTake(library.Action):
    take: int


class FakeLeft(library.Observation):
    left: str


class FakeCountdown(library.Environment):
    """Count down from a number that the seed gives."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, start: int = 0) -> FakeLeft:
        self._left = start or Random(seed).randint(2, 9)
        return FakeLeft(left=f"{self._left} left")

    def step(self, action: FakeTake, timeout_s: float | None = None) -> FakeLeft:
        self._left -= action.take
        return FakeLeft(left=f"{self._left} left", reward=float(self._left == 0), done=self._left == 0)

    @property
    def state(self) -> Any:
        return library.State(step_count=0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = library.create_fastapi_app(FakeCountdown, FakeTake, FakeLeft, max_concurrent_envs=2)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def environment(url: str, **options: Any) -> OpenEnvEnvironment:
    settings: dict[str, Any] = {"action": "take", "actions": {"one": 1, "none": 0}, "show": "left"}
    return OpenEnvEnvironment(url, **settings | options)


def test_a_session_on_a_real_server_is_an_episode(url: str) -> None:
    played = environment(url)
    first = played.reset(Task("train/4", "seed", "4"))
    count = int(first.text.split()[0])
    taken = [played.step("one") for _ in range(count)]
    assert [t.reward for t in taken] == [0.0] * (count - 1) + [1.0]
    assert [(t.done, t.success) for t in taken] == [(False, False)] * (count - 1) + [(True, True)]
    assert played.reset(Task("train/4", "seed", "4")) == first
    other = environment(url)
    other.reset(Task("row", "row", '{"start": 7}'))
    assert other.step("one").observation.text == "6 left"
    assert played.step("none").observation.text == first.text
    with pytest.raises(EnvError, match="CAPACITY_REACHED"):
        environment(url).reset(Task("train/1", "seed", "1"))
    played.close()
    other.close()


def test_a_real_server_refuses_what_its_schema_does_not_have(url: str) -> None:
    refusing = environment(url, fixed={"hand": "left"})
    before = refusing.reset(Task("train/2", "seed", "2"))
    refused = refusing.step("one")
    assert (refused.valid, refused.done, refused.observation) == (False, False, before)
    refusing.close()


def test_a_real_server_forgets_an_episode_between_http_requests(url: str) -> None:
    with pytest.raises(EnvError, match="forgets an episode between requests; use websocket"):
        environment(url, transport="http").reset(Task("train/1", "seed", "1"))
