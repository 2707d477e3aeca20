"""The collector: what a step records, order, concurrency, and one clear error when something breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from collecting import by, collect
from fake_engine import CRASH, DOWN, FAIL, UP, WORDS, FakeEngine
from fake_environment import FINE, RAISED
from word_tokenizer import write_tokenizer

from envs.base import EnvError, Observation, Task, Transition
from envs.dialogue import GENERIC, Answer, Dialogue, parse_tagged
from gigpo_mega.algorithms.anchors import anchor_key
from gigpo_mega.config import EngineConfig, EnvironmentConfig, PromptConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.collector import Collector, CollectStats
from gigpo_mega.rollout.engines.base import EngineError, Sampling
from gigpo_mega.rollout.engines.server import SGLangServer
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from gigpo_mega.rollout.episode import Player
from gigpo_mega.rollout.pools.base import PoolError
from gigpo_mega.rollout.pools.process import ProcessPool
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.summary import engine_metrics
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.storage.journal import Journal
from gigpo_mega.types import Trajectory
from tests.conftest import Served

HARMLESS = WORDS.replace("crash", "wait")  # for a random policy, which says every word now and then
TAGGED = replace(GENERIC["compact"], read=parse_tagged)


def task(goal: int | str) -> Task:
    return Task(f"count-{goal}", "count", str(goal))


@pytest.fixture
def collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Collector]]:
    """Makes collectors over FakeCounter; `engine` and fields of EnvironmentConfig may be given."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pools: dict[str, ProcessPool] = {}

    def make(
        engine: Any,
        concurrency: int = 8,
        dialogue: Dialogue = GENERIC["compact"],
        prompt: PromptConfig | None = None,
        words: str = WORDS,
        **fields: Any,
    ) -> Collector:
        tokenizer = Tokenizer(write_tokenizer(tmp_path, words))
        config = EnvironmentConfig(max_steps=6, **fields)
        prompts = PromptBuilder(prompt or PromptConfig(), dialogue, tokenizer, 64)
        kind = "FAULTY" if config.name == "faulty" else "KIND"
        if kind not in pools:
            pools[kind] = ProcessPool(f"fake_environment:{kind}", {}, workers=2)
        player = Player(engine, pools[kind], prompts, dialogue, tokenizer, config)
        return by(player, concurrency)

    yield make
    for pool in pools.values():
        pool.close()


def test_groups_keep_the_order_of_tasks(collector: Callable[..., Collector]) -> None:
    engine = FakeEngine()
    reports: list[CollectStats] = []
    tasks = [task(goal) for goal in (5, 1, 4, 2)]
    groups = collect(collector(engine), tasks, 4, Sampling(), reports.append)
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
    ((trajectory,),) = [group.trajectories for group in collect(made, [task(2)], 1, Sampling())]
    first, second = trajectory.steps
    assert first.prompt_ids.dtype == np.int32
    assert second.prompt_ids.tolist() != first.prompt_ids.tolist()
    assert first.response_ids.tolist() == [UP, 1]
    assert first.logprobs.tolist() == [-0.25, -0.5]
    assert first.versions.tolist() == [5, 5]
    assert (first.reward, second.reward) == (0.0, 10.0)
    assert (first.observation, first.action) == ("count 0", "up")
    assert first.anchor == anchor_key("count 0", salt="count-2")
    assert second.anchor == anchor_key("count 1", salt="count-2")
    assert first.next_anchor == second.anchor
    assert second.next_anchor == anchor_key("count 2", salt="count-2")
    assert (first.next_observation, second.next_observation) == ("count 1", "count 2")
    assert (first.success, second.success) == (False, True)
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
    groups = collect(collector(FakeEngine(lambda ids: token), **fields), [task(9)], 2, Sampling())
    assert len(groups[0].trajectories) == 2
    for trajectory in groups[0].trajectories:
        assert trajectory.ended_by == ended_by
        assert [step.valid for step in trajectory.steps] == [valid] * steps
        assert not any(step.success for step in trajectory.steps)
        assert not trajectory.success
        assert trajectory.score == 0.0


def test_a_growing_conversation_is_token_exact(collector: Callable[..., Collector]) -> None:
    made = collector(FakeEngine(), prompt=PromptConfig(context="append"))
    ((trajectory,),) = [group.trajectories for group in collect(made, [task(4)], 1, Sampling())]
    for earlier, later in pairwise(trajectory.steps):
        said = [*earlier.prompt_ids.tolist(), *earlier.response_ids.tolist()]
        assert later.prompt_ids[: len(said)].tolist() == said
        assert len(later.prompt_ids) > len(said)


def test_an_answer_cut_off_is_invalid(collector: Callable[..., Collector]) -> None:
    engine = FakeEngine()
    engine.finish = "length"
    ((trajectory,),) = [g.trajectories for g in collect(collector(engine), [task(1)], 1, Sampling())]
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
        collect(collector(engine), [task(5)], 16, Sampling())
    engine.policy = lambda ids: UP
    assert collect(collector(engine), [task(2)], 2, Sampling())[0].trajectories[0].success  # and it goes on


def test_a_dead_worker_or_a_bad_task_is_one_error(collector: Callable[..., Collector]) -> None:
    with pytest.raises(UserError, match=r"environment worker .* died with status 3"):
        collect(collector(FakeEngine(lambda ids: CRASH)), [task(5)], 8, Sampling())
    with pytest.raises(EnvError, match="no such game: count-missing"):
        collect(collector(FakeEngine()), [task(5), task("missing")], 4, Sampling())


class FakePool:
    """Gives `rewards`, one a step, and 0 after them, whatever the action; step `ends_at` ends the episode.

    Step `succeeds_at`, the last one unless given, says success if `success` is set.
    """

    def __init__(
        self, rewards: Sequence[float], ends_at: int, success: bool, succeeds_at: int | None = None
    ) -> None:
        self._rewards, self._ends_at, self._success = rewards, ends_at, success
        self._succeeds_at = succeeds_at or ends_at
        self._steps = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def reset(self, slot: int, task: Task, fresh: bool = False) -> Observation:
        self._steps = 0
        return Observation("the start", state="state 0")

    async def step(self, slot: int, action: str) -> Transition:
        reward = self._rewards[self._steps] if self._steps < len(self._rewards) else 0.0
        self._steps += 1
        done = self._steps == self._ends_at
        seen = Observation("the same words", state=f"state {self._steps}")
        return Transition(seen, reward, done, self._steps == self._succeeds_at and self._success, True)


def played(collector: Callable[..., Collector], pool: FakePool) -> Trajectory:
    made = collector(FakeEngine())
    player: Any = made._player
    player._player.pool = pool
    ((trajectory,),) = [group.trajectories for group in collect(made, [task(1)], 1, Sampling())]
    return trajectory


def test_a_score_is_the_sum_of_all_rewards_and_says_nothing_of_success(
    collector: Callable[..., Collector],
) -> None:
    lost = played(collector, FakePool((1.0, 2.0), ends_at=3, success=False))
    assert (lost.score, lost.success, lost.ended_by, len(lost.steps)) == (3.0, False, "failure", 3)
    won = played(collector, FakePool((-1.0, 0.5), ends_at=2, success=True))
    assert (won.score, won.success, won.ended_by) == (-0.5, True, "success")


def test_scores_of_equal_rewards_are_equal_in_whatever_order_these_came(
    collector: Callable[..., Collector],
) -> None:
    """Added one after the other they differ in the last bit, and their group counted as one that differs."""
    one, other = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    assert sum(one) != sum(other)
    scores = [played(collector, FakePool(of, ends_at=3, success=False)).score for of in (one, other)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(("success", "ended_by"), [(False, "limit"), (True, "success")])
def test_an_environment_that_ends_in_the_last_step_allowed_ran_into_the_limit_unless_it_was_won(
    collector: Callable[..., Collector], success: bool, ended_by: str
) -> None:
    trajectory = played(collector, FakePool((), ends_at=6, success=success))
    assert (trajectory.success, trajectory.ended_by, len(trajectory.steps)) == (success, ended_by, 6)


@pytest.mark.parametrize(
    ("ends_at", "succeeds_at", "success", "ended_by", "steps"),
    [
        (3, 2, False, "failure", 3),  # the goal was reached and lost again
        (6, 2, False, "limit", 6),
        (99, 2, False, "limit", 6),
        (99, 6, True, "success", 6),  # the last step allowed is the last one, whatever `done` says
    ],
)
def test_an_episode_succeeds_with_its_last_step_only(
    collector: Callable[..., Collector],
    ends_at: int,
    succeeds_at: int,
    success: bool,
    ended_by: str,
    steps: int,
) -> None:
    trajectory = played(collector, FakePool((), ends_at, success=True, succeeds_at=succeeds_at))
    assert (trajectory.success, trajectory.ended_by, len(trajectory.steps)) == (success, ended_by, steps)


def test_an_anchor_is_the_canonical_state_if_there_is_one(collector: Callable[..., Collector]) -> None:
    trajectory = played(collector, FakePool((), ends_at=3, success=False))
    expected = [anchor_key(f"state {step}", salt="count-1") for step in range(4)]
    assert [step.anchor for step in trajectory.steps] == expected[:3]
    assert [step.next_anchor for step in trajectory.steps] == expected[1:]


def faulty(source: str) -> Task:
    return Task("task-7", "faulty", source)


@pytest.mark.parametrize("source", ["reward nan", "reward two", "text None", "tuple", "locked"])
def test_a_wrong_value_of_an_environment_is_one_line_with_environment_task_and_step(
    collector: Callable[..., Collector], source: str
) -> None:
    made = collector(FakeEngine(), name="faulty")
    with pytest.raises(EnvError, match=r"^environment faulty, task task-7, step 2: [^\n]+$"):
        collect(made, [faulty(source)], 2, Sampling())


@pytest.mark.parametrize("source", ["nothing", "tuple", "observation text", "locked"])
def test_a_reset_that_returns_no_observation_is_one_line(
    collector: Callable[..., Collector], source: str
) -> None:
    engine = FakeEngine()
    expected = r"^environment faulty, task task-7, reset: [^\n]+, not envs\.Observation$"
    with pytest.raises(EnvError, match=expected):
        collect(collector(engine, name="faulty"), [faulty(f"reset {source}")], 2, Sampling())
    assert engine.calls == 0


@pytest.mark.parametrize(("source", "step"), [(s, "step 2") for s in RAISED] + [("reset raises", "reset")])
def test_an_exception_in_an_environment_names_task_and_step_and_keeps_its_traceback(
    collector: Callable[..., Collector], source: str, step: str
) -> None:
    made = collector(FakeEngine(), name="faulty")
    expected = rf"^environment faulty, task task-7, {step}: .*\nTraceback[\s\S]*fake_environment\.py"
    with pytest.raises(PoolError, match=expected):
        collect(made, [faulty(source)], 2, Sampling())


@pytest.mark.parametrize("source", FINE)
def test_numpy_scalars_and_integers_become_plain_values(
    collector: Callable[..., Collector], source: str, tmp_path: Path
) -> None:
    made = collector(FakeEngine(), name="faulty", invalid="admissible")
    (group,) = collect(made, [faulty(source)], 1, Sampling())
    trajectory = group.trajectories[0]
    step = trajectory.steps[1]
    assert (type(step.reward), type(step.valid), type(trajectory.success)) == (float, bool, bool)
    assert (step.reward, trajectory.score, trajectory.success) == (FINE[source]().reward, step.reward, True)
    Journal(tmp_path / "groups").keep(0, 7, group)
    assert Journal(tmp_path / "groups").begun(0)[7].trajectories[0].steps[1].reward == step.reward


@pytest.mark.engine
def test_collect_from_a_real_engine(collector: Callable[..., Collector], served: Served) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    policy: Any = Qwen2ForCausalLM.from_pretrained(served.model, dtype=torch.float32).eval()
    with SGLangServer(served.model, EngineConfig(url=served.url), Path("unused")) as server:
        made = collector(SGLangEngine(server.url), concurrency=16, words=HARMLESS)
        groups = collect(made, [task(1), task(2)], 8, Sampling(max_new_tokens=3, stop_token_ids=(1,)))
    steps = [step for group in groups for t in group.trajectories for step in t.steps]
    assert len(steps) == made.stats.steps > 16
    for step in steps:
        ids = torch.tensor([[*step.prompt_ids.tolist(), *step.response_ids.tolist()]])
        with torch.no_grad():
            logprobs = policy(ids).logits[0, len(step.prompt_ids) - 1 : -1].log_softmax(-1)
        exact = logprobs.gather(1, ids[0, len(step.prompt_ids) :, None])[:, 0].numpy()
        np.testing.assert_allclose(step.logprobs, exact, atol=1e-5)
        assert not step.versions.any()


@pytest.mark.engine
def test_a_growing_conversation_is_found_in_the_prefix_cache(
    collector: Callable[..., Collector], served: Served
) -> None:
    found: dict[str, dict[str, float]] = {}
    counts = replace(GENERIC["compact"], read=lambda text, ended: Answer("up", valid=True))
    for context in ("window", "append"):
        with SGLangServer(served.model, EngineConfig(url=served.url), Path("unused")) as server:
            made = collector(SGLangEngine(server.url), 4, counts, PromptConfig(context=context), HARMLESS)
            collect(made, [task(8), task(9)], 4, Sampling(max_new_tokens=3, stop_token_ids=(1,)))
        steps, found[context] = made.stats.steps, engine_metrics(made.stats)
        new = made.stats.prompt_tokens - made.stats.cached_tokens
        assert found[context]["rollout/prefilled_tokens"] == new / steps
        assert found[context]["rollout/truncated"] == 0.0
    assert 0 < found["window"]["rollout/cached_share"] < found["append"]["rollout/cached_share"] < 1
    assert found["append"]["rollout/cached_share"] > 0.5
