"""The memory of the KV cache: with the server while episodes are played, and only then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from playing import FakeSGLang

from envs.base import Task
from gigpo_mega.config import (
    Config,
    EnvironmentConfig,
    EvaluationConfig,
    ModelConfig,
    PromptConfig,
    RolloutConfig,
)
from gigpo_mega.rollout.engines.base import EngineError, EngineLost, Sampling
from gigpo_mega.rollout.engines.memory import CacheMemory
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.session import RolloutSession
from gigpo_mega.tasks import load_tasks
from tests.conftest import Served

POLICY = Path(__file__).parents[2] / "configs" / "quickstart_policy"
RELEASED = ["/flush_cache?timeout=60", "/release_memory_occupation"]


class FakeLender(FakeSGLang):
    """Says "up", and refuses what would kill it: sampling without its KV cache's memory."""

    calls: ClassVar[list[str]] = []
    refuses: ClassVar[str] = ""
    status: ClassVar[int] = 400
    resident: ClassVar[bool] = True

    def do_POST(self) -> None:
        kind = type(self)
        kind.calls.append(self.path)
        payload = self.payload()
        allowed = self.path != kind.refuses
        if self.path.startswith("/re"):
            allowed &= payload == {"tags": ["kv_cache"]} and kind.resident == self.path.startswith("/rel")
            kind.resident = not kind.resident
        if self.path == "/generate":
            allowed &= kind.resident
        if allowed and self.path == "/generate":
            return self.say(payload)
        self.send_response(200 if allowed else kind.status)
        self.end_headers()
        if not allowed:
            self.wfile.write(b"out of memory")


@pytest.fixture
def url() -> Iterator[str]:
    FakeLender.calls, FakeLender.refuses, FakeLender.resident, FakeLender.status = [], "", True, 400
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeLender) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def opened(url: str, lends: bool) -> Iterator[tuple[RolloutSession, Task]]:
    """A session with the fake server, and a task."""
    cfg = Config(
        environment=EnvironmentConfig(name="sokoban", max_steps=2),
        evaluation=EvaluationConfig(split="test"),
        model=ModelConfig(path=POLICY),
        prompt=PromptConfig(dialogue="compact"),
        rollout=RolloutConfig(max_prompt_tokens=192, max_response_tokens=6, concurrency=4),
    )
    task = load_tasks(cfg).training[0]
    with RolloutSession(cfg, POLICY, [url], lend_memory=lends) as made:
        yield made, task


def test_the_memory_is_taken_before_sampling_and_given_back_after(url: str) -> None:
    with opened(url, True) as (made, task):
        assert FakeLender.calls == RELEASED  # the learner may update before anything is played
        for _ in range(2):
            FakeLender.calls.clear()
            (group,) = made.collect(Quota.of([task]), 2, 1.0).values()
            assert [len(trajectory.steps) for trajectory in group.trajectories] == [2, 2]
            first, *sampled = FakeLender.calls[:-2]
            assert first == "/resume_memory_occupation"
            assert set(sampled) == {"/generate"}
            assert FakeLender.calls[-2:] == RELEASED


def test_a_server_that_keeps_its_memory_is_not_asked(url: str) -> None:
    with opened(url, False) as (made, task):
        made.collect(Quota.of([task]), 2, 1.0)
    assert set(FakeLender.calls) == {"/generate"}


def test_a_lost_server_is_not_asked_and_one_launched_again_lends_at_once(url: str) -> None:
    with opened(url, True) as (made, task):
        made.collect(Quota.of([task]), 1, 1.0)
        made.lose(url, "it died")
        FakeLender.calls.clear()
        with pytest.raises(EngineLost, match="no engine is left: it died"):
            made.collect(Quota.of([task]), 1, 1.0)
        assert FakeLender.calls == []
        FakeLender.resident = True  # as a new process is
        made.readmit([url])
        assert FakeLender.calls == RELEASED
        made.collect(Quota.of([task]), 1, 1.0)
        assert made.lost == {}


def test_an_error_while_sampling_leaves_the_memory_with_the_server(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests may be in flight, and a server that is not idle dies of a release."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with opened(url, True) as (made, task):
        FakeLender.calls.clear()
        with monkeypatch.context() as patched:
            patched.setattr(made._collector, "collect", interrupted)
            with pytest.raises(KeyboardInterrupt):
                made.collect(Quota.of([task]), 1, 1.0)
        assert FakeLender.calls == ["/resume_memory_occupation"]
        made.collect(Quota.of([task]), 1, 1.0)
        assert FakeLender.calls[-2:] == RELEASED


@pytest.mark.parametrize("path", ["/flush_cache?timeout=60", "/release_memory_occupation"])
def test_a_server_that_does_not_give_its_memory_is_one_error(path: str, url: str) -> None:
    FakeLender.refuses = path
    with pytest.raises(EngineError) as caught:
        CacheMemory(url).release()
    line = str(caught.value)
    assert line.startswith(f"{url}{path}: 400: out of memory; ")
    assert "engine.release_memory false keeps its KV cache where it is" in line


def test_memory_that_cannot_be_taken_again_is_one_error(url: str) -> None:
    memory = CacheMemory(url)
    memory.release()
    FakeLender.refuses = "/resume_memory_occupation"
    with pytest.raises(EngineError, match="/resume_memory_occupation: 400: out of memory"):
        memory.resume()


def test_a_server_that_fails_as_it_takes_its_memory_again_is_lost(url: str) -> None:
    """It dies where memory has run out; the run starts it again."""
    with opened(url, True) as (made, task):
        FakeLender.refuses, FakeLender.status = "/resume_memory_occupation", 500
        with pytest.raises(EngineLost, match=r"no engine is left: .*/resume_memory_occupation: 500: out"):
            made.collect(Quota.of([task]), 1, 1.0)
        assert list(made.lost) == [url]


def test_neither_is_asked_for_twice(url: str) -> None:
    """SGLang dies of a second release or resume."""
    memory = CacheMemory(url)
    memory.resume()
    memory.release()
    memory.release()
    memory.resume()
    memory.resume()
    assert FakeLender.calls == [*RELEASED, "/resume_memory_occupation"]


def test_a_dead_server_is_lost() -> None:
    with pytest.raises(EngineLost, match="refused"):
        CacheMemory("http://127.0.0.1:9").release()


@pytest.mark.engine
def test_a_real_server_samples_the_same_after_it_gave_its_memory(served: Served) -> None:
    """On a CPU nothing is freed, but requests, tags and the flushed prefix cache are SGLang's own."""

    async def sample() -> tuple[list[int], int]:
        async with SGLangEngine(served.url) as engine:
            prompt = [9, *range(20, 60)]
            done = await engine.generate(prompt, Sampling(temperature=0.0, max_new_tokens=5))
            return done.response_ids.tolist(), done.cached_tokens

    memory = CacheMemory(served.url)
    before, _ = asyncio.run(sample())
    assert asyncio.run(sample())[1] > 0
    memory.release()
    memory.resume()
    assert asyncio.run(sample()) == (before, 0)
    memory.release()
    memory.resume()
    assert asyncio.run(sample()) == (before, 0)
