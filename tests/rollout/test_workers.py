"""Rollout workers, real processes: what they play is what one process plays, whatever dies on the way."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import playing
import psutil
import pytest
from playing import SIZE, content, servers, tasks

from envs.base import EnvError, EnvUnavailable, Task
from gigpo_mega.config import Config, EnvironmentConfig, RolloutConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.collector import CollectStats
from gigpo_mega.rollout.engines.base import EngineError, EngineLost
from gigpo_mega.rollout.engines.fleet import Served
from gigpo_mega.rollout.group_player import Attempt, Counts, Failure
from gigpo_mega.rollout.pools.base import EnvironmentLost, PoolError
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.workers import client, wire
from gigpo_mega.rollout.workers.launch import share_of
from gigpo_mega.types import Group
from tests.tiny import free_port


@pytest.fixture
def urls() -> Iterator[list[str]]:
    with servers() as found:
        yield found


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return partial(playing.session, tmp_path)


def untimed(stats: CollectStats) -> CollectStats:
    return replace(stats, seconds=0.0)


def workers() -> list[psutil.Process]:
    """The processes of rollout workers that this process has started."""
    running = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in running if "gigpo_mega.rollout.workers.server" in p.cmdline()]


def test_two_workers_play_what_one_process_plays(urls: list[str], session: Callable[..., Any]) -> None:
    played, counted, requests = [], [], []
    for count in (1, 2):
        with session(urls, workers=count) as made:
            for goals in ((3, 5, 1, 4, 2, 6), (2, 2)):
                played.append(content(made.collect(Quota.of(tasks(*goals)), SIZE, 1.0)))
                counted.append(untimed(made.stats))
                requests.append(sum(engine.requests for engine in made.engines))
    assert played[:2] == played[2:]
    assert counted[:2] == counted[2:]
    assert requests == [SIZE * 21, SIZE * 4] * 2
    assert counted[0].steps == SIZE * 21
    assert counted[0].episodes == counted[0].total == SIZE * 6
    assert workers() == []


def test_each_worker_has_its_share(tmp_path: Path) -> None:
    cfg = Config(
        environment=EnvironmentConfig(workers=5),
        rollout=RolloutConfig(workers=3, concurrency=100, pool="ray"),
    )
    share = share_of(cfg)
    assert (share.rollout.concurrency, share.environment.workers) == (34, 2)
    assert (share.rollout.workers, share.rollout.pool) == (1, "process")


def test_the_groups_of_a_worker_that_is_killed_are_played_again(
    urls: list[str], session: Callable[..., Any]
) -> None:
    goals, killed = [3, 5, 1, 4, 2, 6, 5, 4], list[int]()

    def kill(number: int, group: Group) -> None:
        if not killed:
            killed.append(workers()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with session(urls, options={"delay": 0.02}) as made:
        quota = Quota(len(goals), enumerate(tasks(*goals)), keep=kill)
        groups = made.collect(quota, SIZE, 1.0)
        assert made.stats.episodes == made.stats.total == SIZE * len(goals)
        assert len(workers()) == 2
        assert killed[0] not in {worker.pid for worker in workers()}
        os.kill(workers()[1].pid, signal.SIGKILL)  # between two collections
        again = made.collect(Quota.of(tasks(*goals)), SIZE, 1.0)
    assert [len(t.steps) for g in groups.values() for t in g.trajectories] == [
        n for n in goals for _ in range(SIZE)
    ]
    assert content(groups) == content(again)


def test_a_worker_that_is_silent_counts_as_lost(
    urls: list[str], session: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose machine is gone is."""
    monkeypatch.setattr(client, "SILENCE_SECONDS", 2.0)
    stopped = list[psutil.Process]()

    def stop(number: int, group: Group) -> None:
        if not stopped:
            stopped.append(workers()[0])
            stopped[0].suspend()

    goals, start = (2, 5, 5, 5), time.monotonic()
    with session(urls, options={"delay": 0.05}) as made:
        groups = made.collect(Quota(4, enumerate(tasks(*goals)), keep=stop), SIZE, 1.0)
        assert stopped[0].pid not in {worker.pid for worker in workers()}
    assert [len(group.trajectories[0].steps) for group in groups.values()] == [*goals]
    assert time.monotonic() - start < 40


def test_a_worker_that_dies_for_every_try_is_an_error(urls: list[str], session: Callable[..., Any]) -> None:
    """What no retry helps against ends the collection, and nothing hangs."""
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            for worker in workers():
                worker.kill()

    with session(urls, options={"delay": 0.2}, retries=1) as made:
        thread = threading.Thread(target=kill)
        thread.start()
        try:
            with pytest.raises(UserError, match=r"a rollout worker (has ended|cannot be started)"):
                made.collect(Quota.of(tasks(5)), SIZE, 1.0)
        finally:
            stop.set()
            thread.join()


def test_an_engine_that_is_lost_is_lost_for_the_session(urls: list[str], session: Callable[..., Any]) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with session([urls[0], dead]) as made:
        groups = made.collect(Quota.of(tasks(3, 2)), SIZE, 1.0)
        assert len(groups) == 2
        assert list(made.lost) == [dead]
        made.lose(urls[0], "it died")
        with pytest.raises(EngineLost, match="no engine is left: it died"):
            made.collect(Quota.of(tasks(1)), SIZE, 1.0)
        made.readmit(urls)
        assert made.lost == {}
        assert len(made.collect(Quota.of(tasks(1)), SIZE, 1.0)) == 1


def test_errors_of_environments_arrive_with_their_place(urls: list[str], session: Callable[..., Any]) -> None:
    where = r"^environment fake_environment:KIND, task lost, reset: "
    with session(urls) as made:
        for source, kind, said in (("missing", EnvError, "no such game"), ("many", PoolError, "ValueError")):
            with pytest.raises(kind, match=where + said):
                made.collect(Quota.of([Task("lost", "count", source), *tasks(3)]), SIZE, 1.0)
        assert len(made.collect(Quota.of(tasks(1, 2)), SIZE, 1.0)) == 2


@pytest.mark.parametrize("fault", ["unavailable", "kill"])
def test_episodes_are_played_again_and_groups_dropped_as_in_one_process(
    fault: str, urls: list[str], session: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"folder": str(tmp_path)}
    given = [Task("fine", "count", "3"), Task("once", "count", "3 reset unavailable 1"),
             Task("never", "count", f"3 reset {fault} 99"), Task("spare", "count", "2")]  # fmt: skip
    with session(urls, kind="FLAKY", options=options, retries=1) as made:
        groups = made.collect(Quota(3, enumerate(given)), SIZE, 1.0)
        stats = made.stats
    assert sorted(group.task.id for group in groups.values()) == ["fine", "once", "spare"]
    assert stats.episodes == stats.total == 3 * SIZE
    assert [reason.partition(":")[0] for reason in stats.dropped] == ["task never"]
    assert stats.retries >= 1


@pytest.mark.parametrize(
    "failure",
    [EnvironmentLost("died", at_fault=False), client.WorkerLost(), EngineError("no"), EnvUnavailable("no")],
    ids=lambda failure: type(failure).__name__,
)
def test_every_reason_of_a_failure_can_be_told_to_the_leader(failure: Failure) -> None:
    told = pickle.loads(pickle.dumps(failure))
    assert (type(told), str(told), told.__dict__) == (type(failure), str(failure), failure.__dict__)


def test_a_message_that_cannot_be_read_ends_the_collection(
    urls: list[str], session: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(*_: Any) -> None:
        raise TypeError("no such message")

    monkeypatch.setattr(client._Connection, "_take", take)
    with session(urls) as made, pytest.raises(TypeError, match="no such message"):
        made.collect(Quota.of(tasks(3)), SIZE, 1.0)


def test_environments_may_write_to_their_standard_output(
    urls: list[str], session: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside the port of the worker, and more than a pipe holds."""
    with session(urls, module="noisy_environment") as made:
        assert len(made.collect(Quota.of(tasks(5, 5)), SIZE, 1.0)) == 2
    assert capfd.readouterr().out.startswith("welcome to the noisy environment\n")


def test_groups_beyond_what_is_needed_are_given_up(urls: list[str], session: Callable[..., Any]) -> None:
    with session(urls, options={"delay": 0.05}) as made:
        groups = made.collect(Quota(2, enumerate(tasks(1, 1, 9)), ahead=1), SIZE, 1.0)
        stats = made.stats
    assert list(groups) == [0, 1]
    assert stats.cut == 1
    assert stats.steps < SIZE * 11  # the long group ended early


def test_a_collection_that_fails_leaves_workers_that_play_on(
    urls: list[str], session: Callable[..., Any]
) -> None:
    def refuse(number: int, group: Group) -> None:
        raise UserError("the disk is full")

    with session(urls, options={"delay": 0.05}) as made:
        before = {worker.pid for worker in workers()}
        with pytest.raises(UserError, match="the disk is full"):
            made.collect(Quota(3, enumerate(tasks(1, 9, 9)), keep=refuse), SIZE, 1.0)
        groups = made.collect(Quota.of(tasks(2)), SIZE, 1.0)
        assert {worker.pid for worker in workers()} == before
    assert content(groups)[0][0][0] == "count-2-0"
    assert made.stats.steps == 2 * SIZE


def test_a_worker_that_cannot_start_says_so(urls: list[str], session: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="a rollout worker cannot be started"), session(urls, kind="NONE"):
        pass
    assert workers() == []


def test_a_stranger_is_not_served(urls: list[str], session: Callable[..., Any]) -> None:
    """Pickles are read from who knows the secret only."""
    with session(urls) as made:
        address = made._player._workers[0].address()
        with socket.create_connection(address, timeout=20) as stranger:
            stranger.sendall(b"x" * 32 + b"\0" * 64)
            assert stranger.recv(1) == b""
        assert len(made.collect(Quota.of(tasks(2)), SIZE, 1.0)) == 1


def test_reports_are_added_up_also_those_of_workers_that_have_ended() -> None:
    player = client.RemoteGroupPlayer([], share=4, urls=["one", "two"], retries=1)
    player._on_change = lambda: None
    for number, (steps, finished) in enumerate([(5, {7: 4}), (3, {7: 2, 8: 1}), (0, {})]):
        connection = client._Connection(cast(Any, None), player._take, open=False)
        player._connections.append(connection)
        if number < 2:  # the third ended before it had said anything
            engines = (Served(requests=steps), Served("it died" if number else None, requests=1, moves=2))
            connection._take(wire.Progress(Counts(steps=steps, finished=Counter(finished)), engines, 0))
    assert (player.counts.steps, player.counts.finished) == (8, {7: 4, 8: 1})
    assert player.engines == [Served(requests=8), Served("it died", requests=2, moves=4)]
    player.readmit(player._urls)
    assert [engine.lost for engine in player.engines] == [None, None]
    died = (Served(), Served("it died again"))
    for heard, lost in ((player._said - 1, None), (player._said, "it died again")):
        player._connections[0]._take(wire.Progress(Counts(), died, heard))
        assert player.engines[1].lost == lost


def test_all_engines_that_a_report_calls_lost_are_lost() -> None:
    """The first one's loss made the report look old, and the others were asked again."""
    player = client.RemoteGroupPlayer([], share=4, urls=["one", "two", "three"], retries=1)
    player._on_change = lambda: None
    player._take(wire.Progress(Counts(), (Served("hung"), Served("hung"), Served()), player._said))
    assert [engine.lost for engine in player.engines] == ["hung", "hung", None]


def test_what_ended_a_worker_s_collection_is_told_to_groups_that_come_later() -> None:
    """It used to be taken for the death of the worker, which was killed and started again."""

    async def play(connection: client._Connection) -> None:
        await connection.play(Attempt(0, tasks(1)[0]))

    failed = client._Connection(cast(Any, None), print, open=False, error=EngineLost("no engine is left"))
    with pytest.raises(EngineLost, match="no engine is left"):
        asyncio.run(play(failed))


def test_a_group_that_was_not_sent_to_a_worker_that_had_ended_is_not_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[int] = []

    async def play(self: client._Connection, attempt: Attempt) -> wire.Played:
        if not self.open:
            raise self.error
        sent.append(attempt.number)
        return wire.Played(attempt.number, (None,), None)

    async def replace(self: client.RemoteGroupPlayer, place: client._Place) -> None:
        place.connection.open = True

    async def main() -> None:
        player = client.RemoteGroupPlayer([], share=4, urls=["one"], retries=0)
        ended = client._Connection(cast(Any, None), print, open=False)
        player._free.put_nowait(client._Place(cast(Any, None), ended))
        attempt = Attempt(5, tasks(1)[0])
        assert await player.play(attempt) == (None,)
        assert (attempt.failure, sent) == (None, [5])

    monkeypatch.setattr(client._Connection, "play", play)
    monkeypatch.setattr(client.RemoteGroupPlayer, "_replace", replace)
    asyncio.run(main())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_loss_of_the_last_engine_is_known_to_the_session(
    workers: int, session: Callable[..., Any]
) -> None:
    """With workers it used to be told as an error alone: an engine that hung was asked again and again."""
    dead = f"http://127.0.0.1:{free_port()}"
    with session([dead], workers=workers) as made:
        with pytest.raises(EngineLost, match="no engine is left"):
            made.collect(Quota.of(tasks(1, 2)), SIZE, 1.0)
        assert list(made.lost) == [dead]


def test_a_bug_in_a_worker_is_shown_with_its_traceback(urls: list[str], session: Callable[..., Any]) -> None:
    with session(urls) as made, pytest.raises(AttributeError) as caught:
        made.collect(Quota.of([cast(Any, "no task")]), SIZE, 1.0)
    (note,) = caught.value.__notes__
    assert note.startswith("in a rollout worker:\nTraceback")
    assert "episode.py" in note
