"""The collector: what a step records, order, concurrency, and one clear error when something breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from words import write_tokenizer

from envs.base import EnvironmentError, Task
from envs.dialogue import GENERIC, Answer, Dialogue, tagged
from gigpo_mega.algorithms.grouping import anchor_key
from gigpo_mega.config import EngineConfig, EnvironmentConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.collector import Collector, CollectStats
from gigpo_mega.rollout.engine import Completion, EngineError, Sampling
from gigpo_mega.rollout.pool import EnvironmentPool
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.server import SGLangServer
from gigpo_mega.rollout.sglang import SGLangEngine
from gigpo_mega.rollout.summary import engine_metrics
from gigpo_mega.rollout.tokenizer import Tokenizer
from tests.conftest import Served

WORDS = "up down fail crash Task: count to Start. Can: up, > 0 1 2 3 4 5 6 7 8 9"
UP, DOWN, FAIL, CRASH = 4, 5, 6, 7
TAGGED = replace(GENERIC["compact"], read=tagged)


class FakeEngine:
    """Answers a prompt with `policy(prompt ids)` and the stop token, after a different delay each time."""

    def __init__(self, policy: Callable[[list[int]], int] = lambda ids: UP) -> None:
        self.policy = policy
        self.version = 5
        self.running = self.most = self.calls = 0
        self.finish = "stop"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep((self.calls * 7 % 5) * 1e-3)
        self.running -= 1
        ids = np.array([self.policy(list(prompt_ids)), 1], dtype=np.int32)
        return Completion(ids, np.array([-0.25, -0.5], np.float32), self.version, self.finish, 1)

    async def abort(self) -> None:
        self.running = 0


def task(goal: int | str) -> Task:
    return Task(f"count-{goal}", "count", str(goal))


@pytest.fixture
def collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Collector]]:
    """Makes collectors over FakeCounter; `engine` and fields of EnvironmentConfig may be given."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    tokenizer = Tokenizer(write_tokenizer(tmp_path, WORDS))
    pool = EnvironmentPool("fake_environment:KIND", {}, workers=2)

    def make(
        engine: Any, concurrency: int = 8, dialogue: Dialogue = GENERIC["compact"], **fields: Any
    ) -> Collector:
        config = EnvironmentConfig(max_steps=6, **fields)
        prompts = PromptBuilder(config, dialogue, tokenizer, 64)
        return Collector(engine, pool, prompts, dialogue, tokenizer, config, concurrency)

    yield make
    pool.close()


def test_groups_keep_the_order_of_tasks(collector: Callable[..., Collector]) -> None:
    engine = FakeEngine()
    reports: list[CollectStats] = []
    tasks = [task(goal) for goal in (5, 1, 4, 2)]
    groups = collector(engine).collect(tasks, 4, Sampling(), reports.append)
    assert [group.task for group in groups] == tasks
    lengths = [[len(t.steps) for t in group.trajectories] for group in groups]
    assert lengths == [[5] * 4, [1] * 4, [4] * 4, [2] * 4]
    trajectories = [t for group in groups for t in group.trajectories]
    assert all(t.success and t.ended_by == "success" and t.score == 10.0 for t in trajectories)
    assert 1 < engine.most <= 8
    assert engine.calls == 48
    assert (reports[-1].episodes, reports[-1].total, reports[-1].steps) == (16, 16, 48)


def test_a_step_records_what_the_engine_saw_and_said(collector: Callable[..., Collector]) -> None:
    engine = FakeEngine()
    made = collector(engine)
    ((trajectory,),) = [group.trajectories for group in made.collect([task(2)], 1, Sampling())]
    first, second = trajectory.steps
    assert first.prompt_ids.dtype == np.int32
    assert second.prompt_ids.tolist() != first.prompt_ids.tolist()
    assert first.response_ids.tolist() == [UP, 1]
    assert first.logprobs.tolist() == [-0.25, -0.5]
    assert first.version == 5
    assert (first.reward, second.reward) == (0.0, 10.0)
    assert (first.observation, first.action) == ("count 0", "up")
    assert first.anchor == anchor_key("count 0", salt="count-2")
    assert second.anchor == anchor_key("count 1", salt="count-2")
    stats = made.stats
    assert (stats.steps, stats.response_tokens, stats.cached_tokens, stats.truncated) == (2, 4, 2, 0)
    assert stats.prompt_tokens == len(first.prompt_ids) + len(second.prompt_ids)


@pytest.mark.parametrize(
    ("token", "fields", "ended_by", "steps", "valid"),
    [
        (FAIL, {}, "failure", 1, True),
        (DOWN, {}, "limit", 6, True),
        (DOWN, {"invalid": "admissible"}, "limit", 6, False),
        (UP, {"dialogue": TAGGED}, "limit", 6, False),  # no tags: the last 30 characters are sent
        (0, {}, "limit", 6, False),  # an empty answer
    ],
)
def test_ends_and_validity(
    collector: Callable[..., Collector],
    token: int,
    fields: dict[str, Any],
    ended_by: str,
    steps: int,
    valid: bool,
) -> None:
    groups = collector(FakeEngine(lambda ids: token), **fields).collect([task(9)], 2, Sampling())
    for trajectory in groups[0].trajectories:
        assert trajectory.ended_by == ended_by
        assert [step.valid for step in trajectory.steps] == [valid] * steps
        assert not trajectory.success
        assert trajectory.score == 0.0


def test_a_growing_conversation_is_token_exact(collector: Callable[..., Collector]) -> None:
    made = collector(FakeEngine(), context="append")
    ((trajectory,),) = [group.trajectories for group in made.collect([task(4)], 1, Sampling())]
    for earlier, later in pairwise(trajectory.steps):
        said = [*earlier.prompt_ids.tolist(), *earlier.response_ids.tolist()]
        assert later.prompt_ids[: len(said)].tolist() == said
        assert len(later.prompt_ids) > len(said)


def test_an_answer_cut_off_is_invalid(collector: Callable[..., Collector]) -> None:
    engine = FakeEngine()
    engine.finish = "length"
    ((trajectory,),) = [g.trajectories for g in collector(engine).collect([task(1)], 1, Sampling())]
    assert [step.valid for step in trajectory.steps] == [False]
    assert trajectory.success  # it was sent all the same


def test_an_engine_failure_is_one_error(collector: Callable[..., Collector]) -> None:
    engine = FakeEngine()

    def policy(ids: list[int]) -> int:
        if engine.calls > 10:
            raise EngineError("the engine is gone")
        return UP

    engine.policy = policy
    with pytest.raises(EngineError, match=r"^the engine is gone$"):
        collector(engine).collect([task(5)], 16, Sampling())
    engine.policy = lambda ids: UP
    assert collector(engine).collect([task(2)], 2, Sampling())[0].trajectories[0].success  # and it goes on


def test_an_abort_is_an_error(collector: Callable[..., Collector]) -> None:
    engine = FakeEngine()
    engine.finish = "abort"
    with pytest.raises(EngineError, match="aborted"):
        collector(engine).collect([task(5)], 2, Sampling())


def test_a_dead_worker_or_a_bad_task_is_one_error(collector: Callable[..., Collector]) -> None:
    with pytest.raises(UserError, match=r"environment worker .* died with status 3"):
        collector(FakeEngine(lambda ids: CRASH)).collect([task(5)], 8, Sampling())
    with pytest.raises(EnvironmentError, match="no such game: count-missing"):
        collector(FakeEngine()).collect([task(5), task("missing")], 4, Sampling())


@pytest.mark.engine
def test_collect_from_a_real_engine(collector: Callable[..., Collector], served: Served) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    policy: Any = Qwen2ForCausalLM.from_pretrained(served.model, dtype=torch.float32).eval()
    with SGLangServer(served.model, EngineConfig(url=served.url), Path("unused")) as server:
        made = collector(SGLangEngine(server.url), concurrency=16)
        groups = made.collect([task(1), task(2)], 8, Sampling(max_new_tokens=3, stop_token_ids=(1,)))
    steps = [step for group in groups for t in group.trajectories for step in t.steps]
    assert len(steps) == made.stats.steps > 16
    for step in steps:
        ids = torch.tensor([[*step.prompt_ids.tolist(), *step.response_ids.tolist()]])
        with torch.no_grad():
            logprobs = policy(ids).logits[0, len(step.prompt_ids) - 1 : -1].log_softmax(-1)
        exact = logprobs.gather(1, ids[0, len(step.prompt_ids) :, None])[:, 0].numpy()
        np.testing.assert_allclose(step.logprobs, exact, atol=1e-5)
        assert step.version == 0


@pytest.mark.engine
def test_a_growing_conversation_is_found_in_the_prefix_cache(
    collector: Callable[..., Collector], served: Served
) -> None:
    found: dict[str, dict[str, float]] = {}
    counts = replace(GENERIC["compact"], read=lambda text, ended: Answer("up", valid=True))
    for context in ("window", "append"):
        with SGLangServer(served.model, EngineConfig(url=served.url), Path("unused")) as server:
            made = collector(SGLangEngine(server.url), 4, counts, context=context)
            made.collect([task(8), task(9)], 4, Sampling(max_new_tokens=3, stop_token_ids=(1,)))
        steps, found[context] = made.stats.steps, engine_metrics(made.stats)
        new = made.stats.prompt_tokens - made.stats.cached_tokens
        assert found[context]["rollout/prefilled_tokens"] == new / steps
        assert found[context]["rollout/truncated"] == 0.0
    assert 0 < found["window"]["rollout/cached_share"] < found["append"]["rollout/cached_share"] < 1
    assert found["append"]["rollout/cached_share"] > 0.5
