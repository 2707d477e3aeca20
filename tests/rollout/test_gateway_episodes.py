"""Episodes of an agent: what they record, how they end, and what becomes of failures."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import SLOW, FakeSpeaker, FakeStuck, ask, collector, give_up, post, tasks, tokenizer, user
from collecting import collect
from fake_engine import WORDS
from playing import content, servers
from word_tokenizer import CHAT, write_tokenizer

from envs.agent import Connection, Outcome, find_agent
from envs.base import EnvError, EnvUnavailable, Task
from gigpo_mega.algorithms.anchors import anchor_key
from gigpo_mega.config import Config, EnvironmentConfig, RolloutConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.base import Completion, EngineError, EngineLost, Sampling
from gigpo_mega.rollout.gateway.conversations import Conversations
from gigpo_mega.rollout.pools.base import EnvironmentLost, PoolError
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.session import RolloutSession
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.storage.journal import Journal
from gigpo_mega.types import Trajectory
from tests.helpers import wait_for

Play = Callable[[Connection], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


def one(
    made: Tokenizer, play: Play, engine: FakeSpeaker | None = None, retries: int = 0, **fields: Any
) -> Trajectory:
    """An episode of task "a"."""
    made_by = collector(engine or FakeSpeaker(made), made, lambda task, c: play(c), retries, **fields)
    (group,) = collect(made_by, tasks("a"), 1)
    return group.trajectories[0]


def test_an_episode_records_its_calls(made: Tokenizer) -> None:
    def play(connection: Connection) -> Outcome:
        said = ask(connection, [user("one")])
        ask(connection, [user("one"), said, {"role": "tool", "content": "two"}])
        ask(connection, [user("three")], anchor="state 3")
        return Outcome(np.float32(0.25), np.bool_(True))  # pyright: ignore[reportArgumentType]

    episode = one(made, play)
    assert (episode.task.id, episode.score, episode.success, episode.ended_by) == ("a", 0.25, True, "success")
    assert [step.reward for step in episode.steps] == [0.0, 0.0, 0.25]
    assert [step.success for step in episode.steps] == [False, False, True]
    anchors = [
        anchor_key(state, "a") for state in ("one", "two", "state 3", "the end, score 0.25")
    ]
    assert [step.anchor for step in episode.steps] == anchors[:3]
    assert [step.next_anchor for step in episode.steps] == anchors[1:]
    assert [step.observation for step in episode.steps] == ["one", "two", "three"]
    assert [step.next_observation for step in episode.steps] == ["two", "three", ""]
    assert [step.action for step in episode.steps] == ["up"] * 3
    assert all(
        step.valid and step.versions.tolist() == [3] * len(step.response_ids) for step in episode.steps
    )


@pytest.mark.parametrize(
    ("returned", "score", "success", "ended_by"),
    [(1, 1.0, True, "success"), (0.0, 0.0, False, "failure"), (-2, -2.0, False, "failure"),
     (Outcome(0.7, False), 0.7, False, "failure"), (np.array([0.5]), 0.5, True, "success")],
)  # fmt: skip
def test_a_score_alone_is_a_success_if_positive(
    made: Tokenizer, returned: Any, score: float, success: bool, ended_by: str
) -> None:
    episode = one(made, lambda connection: (ask(connection, [user("q")]), returned)[1])
    assert (episode.score, episode.success, episode.ended_by) == (score, success, ended_by)


@pytest.mark.parametrize(
    ("returned", "said"),
    [(float("nan"), "the agent's score is nan; it must be finite"), (None, "score is NoneType None"),
     (float("inf"), "score is inf"), ("1", "score is str '1'; it must be a number"),
     (Outcome(1.0, "no"), "success is str 'no'")],  # pyright: ignore[reportArgumentType]
)  # fmt: skip
def test_an_outcome_that_is_none_is_one_line(made: Tokenizer, returned: Any, said: str) -> None:
    with pytest.raises(EnvError, match=f"^environment chats, task a, agent after 1 model calls: .*{said}"):
        one(made, lambda connection: (ask(connection, [user("q")]), returned)[1])


def test_an_agent_that_never_asks_is_one_line(made: Tokenizer) -> None:
    with pytest.raises(
        EnvError, match="task a, agent after 0 model calls: the agent returned without a model"
    ):
        one(made, lambda connection: 1.0)


@pytest.mark.parametrize(
    "error", [KeyError("door"), SystemExit(3), StopIteration(), asyncio.CancelledError()]
)
def test_an_exception_of_an_agent_is_a_bug_with_its_traceback(made: Tokenizer, error: BaseException) -> None:
    def play(connection: Connection) -> float:
        ask(connection, [user("q")])
        raise error

    with pytest.raises(PoolError, match=r"(?s)task a, agent after 1 model calls: .*Traceback.*in play\n"):
        one(made, play, retries=3)


def test_an_agent_that_says_so_is_played_again_or_stops_the_run(made: Tokenizer) -> None:
    tries: list[int] = []

    def play(connection: Connection) -> float:
        ask(connection, [user("q")])
        tries.append(1)
        if len(tries) < 3:
            raise EnvUnavailable("the shop is closed")
        return 1.0

    assert len(one(made, play, retries=2).steps) == 1
    tries.clear()
    with pytest.raises(EnvUnavailable, match=r"task a, agent after 1 model calls: the shop is closed"):
        one(made, play, retries=1)
    with pytest.raises(EnvError, match="no such game"):
        one(made, lambda connection: (_ for _ in ()).throw(EnvError("no such game")), retries=5)


def test_an_agent_that_hangs_is_played_again(made: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its own time counts: the engine takes longer than the limit."""
    tries, left = list[int](), threading.Event()

    def play(connection: Connection) -> float:
        tries.append(1)
        ask(connection, [user("q")])
        if len(tries) == 1:
            engine.loop.call_soon_threadsafe(engine.pass_time)
            left.wait(60)
            ask(connection, [user("late")])  # refused: this episode was given up
        return 1.0

    class FakeSlow(FakeSpeaker):
        """Takes 6 seconds by the clock of the event loop."""

        loop: asyncio.AbstractEventLoop

        async def generate(
            self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0
        ) -> Completion:
            self.loop = asyncio.get_running_loop()
            self.pass_time()
            await asyncio.sleep(0.05)
            return await super().generate(prompt_ids, sampling, session)

        def pass_time(self) -> None:
            before = self.loop.time
            monkeypatch.setattr(self.loop, "time", lambda: before() + 6)

    engine = FakeSlow(made)
    assert len(one(made, play, engine, retries=1, step_timeout=5.0).steps) == 1
    assert len(tries) == len(engine.calls) == 2
    tries.clear()
    with pytest.raises(EnvironmentLost, match=r"more than environment.step_timeout 5.0 s passed"):
        one(made, play, engine, step_timeout=5.0)
    left.set()


class FakeFailing(FakeSpeaker):
    """Raises `errors` first, one at a call."""

    errors: list[Exception]

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        if self.errors:
            raise self.errors.pop(0)
        return await super().generate(prompt_ids, sampling, session)


def test_a_failure_of_the_engine_is_the_engines_whatever_the_agent_makes_of_it(made: Tokenizer) -> None:
    def play(connection: Connection) -> float:
        status, reply = post(connection, {"model": "policy", "messages": [user("q")]})
        if status == 503:
            assert reply["error"]["message"].startswith("the engine has failed: too ")
        return 1.0

    engine = FakeFailing(made)
    engine.errors = [EngineError("too hot")]
    assert len(one(made, play, engine, retries=1).steps) == 1
    engine.errors = [EngineError("too hot")] * 2
    with pytest.raises(EngineError, match=r"^too hot$"):
        one(made, play, engine, retries=1)
    engine.errors = [UserError("too many files are open")]  # no server was asked
    with pytest.raises(UserError, match=r"^too many files are open$"):
        one(made, lambda connection: 0.0 * play(connection), engine, retries=1)
    engine.errors = [EngineLost("gone")] * 3
    with pytest.raises(EngineLost, match="gone"):
        one(made, play, engine, retries=1)


def test_a_bug_of_ours_keeps_its_traceback(made: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conversations, "prompt", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one(made, lambda c: (post(c, {"model": "policy", "messages": [user("q")]}), 1.0)[1], retries=3)


def test_calls_have_a_limit(made: Tokenizer) -> None:
    statuses: list[tuple[int, Any]] = []

    def careful(connection: Connection) -> float:
        for _ in range(4):
            status, reply = post(connection, {"model": "policy", "messages": [user("q")]})
            statuses.append((status, reply.get("error", {}).get("code")))
        return 0.5

    episode = one(made, careful, max_steps=3)
    assert statuses == [(200, None)] * 3 + [(400, "max_steps")]
    assert (len(episode.steps), episode.score, episode.ended_by) == (3, 0.5, "success")

    def endless(connection: Connection) -> float:
        while True:
            ask(connection, [user("q")])

    episode = one(made, endless, max_steps=3)
    assert (len(episode.steps), episode.score, episode.success, episode.ended_by) == (3, 0.0, False, "limit")


def test_calls_that_the_agent_gave_up_are_not_among_them(made: Tokenizer) -> None:
    """OpenAI's client asks again by itself when an answer takes long."""
    engine = FakeStuck(made)

    def patient(connection: Connection) -> float:
        for _ in range(2):
            give_up(connection, engine)
        for _ in range(3):
            ask(connection, [user("q")])
        return 1.0

    episode = one(made, patient, engine, max_steps=3)
    assert (len(episode.steps), episode.score) == (3, 1.0)


def test_calls_at_once_are_in_the_order_of_their_arrival(made: Tokenizer) -> None:
    """The first request gets its answer last, and no reward."""
    first_came, second_answered = threading.Event(), threading.Event()

    class FakeReversing(FakeSpeaker):
        async def generate(
            self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0
        ) -> Completion:
            if "first" in made.spelled(prompt_ids):
                first_came.set()
                assert await asyncio.to_thread(second_answered.wait, 60)
            return await super().generate(prompt_ids, sampling, session)

    def play(connection: Connection) -> float:
        thread = threading.Thread(target=ask, args=[connection, [user("first")]])
        thread.start()
        assert first_came.wait(60)
        ask(connection, [user("second")])
        second_answered.set()
        thread.join()
        return 1.0

    steps = one(made, play, FakeReversing(made)).steps
    assert [(step.observation, step.reward) for step in steps] == [("first", 0.0), ("second", 1.0)]


def test_a_call_that_nobody_waits_for_is_not_recorded(made: Tokenizer) -> None:
    """Its agent has hung up, or has returned."""
    engine = FakeStuck(made)

    def play(connection: Connection) -> float:
        give_up(connection, engine)
        threading.Thread(target=post, args=[connection, SLOW], daemon=True).start()
        wait_for(lambda: engine.begun == 2)
        ask(connection, [user("quick")])
        return 1.0

    episode = one(made, play, engine)
    assert [step.observation for step in episode.steps] == ["quick"]
    assert engine.cancelled == 2


def test_episodes_that_nobody_needs_any_longer_end(made: Tokenizer) -> None:
    """One fails for good while the others are at work: all end, and their keys are void."""
    at_work, refused = threading.Event(), threading.Event()

    def play(task: Task, connection: Connection) -> float:
        if task.id == "bad":
            assert at_work.wait(60)
            raise RuntimeError("oops")
        try:
            while True:
                ask(connection, [user("q")])
                at_work.set()
        except Exception:
            refused.set()
            raise

    with pytest.raises(PoolError, match="task bad"):
        collect(collector(FakeSpeaker(made), made, play, max_steps=10**6), tasks("good", "bad"), 2)
    assert refused.wait(60)


def test_the_journal_keeps_what_agents_did(made: Tokenizer, tmp_path: Path) -> None:
    def agent(task: Task, connection: Connection) -> float:
        for _ in range(2):
            ask(connection, [user("\ud800 q")])
        return 1.0

    groups = collect(collector(FakeSpeaker(made), made, agent), tasks("a", "b"), 2)
    journal = Journal(tmp_path)
    for number, group in enumerate(groups):
        journal.keep(0, number, group)
    for group, read in zip(groups, (journal.group(0, number) for number in range(2)), strict=True):
        assert read.task == group.task
        for one_read, played in zip(read.trajectories, group.trajectories, strict=True):
            columns = ("anchor", "next_anchor", "observation", "action", "reward")
            kept, steps = ([[getattr(s, c) for c in columns] for s in t.steps] for t in (one_read, played))
            assert kept == steps


def test_rollout_workers_play_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes play is what one plays, each in threads of its own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    played = list[Any]()
    for workers in (1, 2):
        folder = tmp_path / f"{workers}"
        folder.mkdir()
        model = write_tokenizer(folder / "model", WORDS, CHAT)
        options = {"folder": str(folder / "seen"), "calls": 2}
        (folder / "seen").mkdir()
        cfg = Config(
            environment=EnvironmentConfig(name="fake_agent:KIND", options=options),
            rollout=RolloutConfig(agent="fake_agent:play", workers=workers, concurrency=8),
        )
        with servers() as urls, RolloutSession(cfg, model, urls) as session:
            played.append(content(session.collect(Quota.of(tasks("a", "b", "c", "d")), 2, 1.0)))
            assert session.stats.steps == 4 * 2 * 2
        seen = {int(file.name) for file in (folder / "seen").iterdir()}
        assert len(seen) == workers
        assert (os.getpid() in seen) == (workers == 1)
    assert played[0] == played[1]


def test_an_agent_is_found_by_its_address() -> None:
    assert find_agent("json:dumps")({}) == "{}"
    for address, said in {
        "no_such_module:play": "'no_such_module'; run in the folder of no_such_module.py",
        "json": "rollout.agent json: it is no address; give module:attribute",
        ":play": "rollout.agent :play: it is no address; give module:attribute",
        "json:play": "no attribute 'play'; functions there: dump, dumps",
        "math:pi": "rollout.agent math:pi is float, not a function",
    }.items():
        with pytest.raises(EnvError, match=said):
            find_agent(address)


def test_settings_that_an_agent_does_not_have_are_refused() -> None:
    agent = "json:dumps"
    with pytest.raises(ValueError, match=r"rollout.pool ray with rollout.workers 1 is for environments"):
        RolloutConfig(agent=agent, pool="ray")
    RolloutConfig(agent=agent, pool="ray", workers=2)
    for held, said in (
        (EnvironmentConfig(workers=2), "environment.workers 2 hold"),
        (EnvironmentConfig(invalid="admissible"), "environment.invalid admissible is about environments"),
    ):
        with pytest.raises(ValueError, match=said):
            Config(rollout=RolloutConfig(agent=agent), environment=held)
