"""A fleet of engines: where episodes are placed, and that no answer is lost with an engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from gigpo_mega.rollout.engines.base import Completion, EngineError, EngineLost, Sampling
from gigpo_mega.rollout.engines.fleet import Fleet

SAMPLING = Sampling()


class FakeEngine:
    """Answers a prompt with its own number, when it is let."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.error: Exception | None = None
        self.well = True
        self.asked: list[int] = []  # the session of each request
        self.open = asyncio.Event()
        self.open.set()
        self.in_flight = 0
        self.tells = True
        self.forgets = False  # the next request
        self.lost = 0  # of those in flight, the ones that it has forgotten

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.in_flight == 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        self.asked.append(session)
        self.in_flight += 1
        forgets, self.forgets = self.forgets, False
        self.lost += forgets
        try:
            await asyncio.sleep(0)
            if forgets:
                await asyncio.sleep(3600)
            await self.open.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.in_flight -= 1
            self.lost -= forgets
        ids = np.array([self.number, *prompt_ids], dtype=np.int32)
        logprobs = np.zeros(len(ids), dtype=np.float32)
        return Completion(ids, logprobs, np.zeros_like(ids), "stop", len(prompt_ids))

    async def healthy(self) -> bool:
        return self.well

    async def held(self) -> int | None:
        return self.in_flight - self.lost if self.tells else None


Act = Callable[[Fleet, list[FakeEngine]], Awaitable[None]]


def run(count: int, act: Act, patience: float = 60.0) -> None:
    async def main() -> None:
        engines = [FakeEngine(number) for number in range(count)]
        async with Fleet(engines, patience, imbalance=2) as fleet:
            await act(fleet, engines)

    asyncio.run(main())


async def ask(fleet: Fleet, session: int) -> int:
    """The number of the engine that answers."""
    return int((await fleet.generate([1, 2], SAMPLING, session)).response_ids[0])


def test_episodes_that_begin_together_are_spread_evenly() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        answers = await asyncio.gather(*(ask(fleet, session) for session in range(10)))
        assert sorted(Counter(answers).values()) == [3, 3, 4]

    run(3, act)


def test_episodes_that_begin_one_after_the_other_are_spread_evenly() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        assert [await ask(fleet, session) for session in range(6)] == [0, 1, 2, 0, 1, 2]

    run(3, act)


def test_an_episode_stays_with_its_engine() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        first = await asyncio.gather(*(ask(fleet, session) for session in range(8)))
        for _ in range(5):
            for session in reversed(range(8)):
                assert await ask(fleet, session) == first[session]
        assert [member.moves for member in fleet.members] == [0, 0]
        assert [member.requests for member in fleet.members] == [24, 24]
        assert [member.cached_tokens for member in fleet.members] == [48, 48]

    run(2, act)


def test_an_episode_moves_past_an_imbalance_and_stays_there() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        homes = [await ask(fleet, session) for session in range(8)]
        crowd = [session for session in range(8) if homes[session] == 0]
        assert len(crowd) == 4
        engines[0].open.clear()
        waiting = [asyncio.create_task(ask(fleet, session)) for session in crowd]
        await asyncio.sleep(0.01)
        # The fourth finds three in flight here and none there.
        assert [task.done() for task in waiting] == [False, False, False, True]
        assert waiting[3].result() == 1
        engines[0].open.set()
        assert await asyncio.gather(*waiting) == [0, 0, 0, 1]
        assert await ask(fleet, crowd[3]) == 1
        assert [member.moves for member in fleet.members] == [0, 1]

    run(2, act)


def test_requests_of_a_lost_engine_are_answered_by_another() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        assert [await ask(fleet, session) for session in range(6)] == [0, 1, 2, 0, 1, 2]
        engines[1].error = EngineLost("connection reset")
        now = await asyncio.gather(*(ask(fleet, session) for session in range(6)))
        assert [now[session] for session in (0, 2, 3, 5)] == [0, 2, 0, 2]
        assert {now[1], now[4]} == {0, 2}  # each by one of those that are left
        assert fleet.members[1].lost == "connection reset"
        engines[1].error = None
        assert 1 not in await asyncio.gather(*(ask(fleet, session) for session in range(20, 26)))
        fleet.readmit(1)
        assert await ask(fleet, 99) == 1

    run(3, act)


def test_requests_in_flight_leave_with_the_first_that_finds_the_engine_lost() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        engines[0].open.clear()
        waiting = [asyncio.create_task(ask(fleet, session)) for session in range(4)]
        await asyncio.sleep(0.01)
        engines[0].error = EngineLost("died")
        engines[0].open.set()
        assert await asyncio.gather(*waiting) == [1, 1, 1, 1]
        assert engines[0].in_flight == 0

    run(2, act)


def test_a_refused_request_is_not_made_again_and_costs_no_engine() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        engines[0].error = EngineError("the prompt is too long")
        with pytest.raises(EngineError, match="too long"):
            await ask(fleet, 0)
        assert [len(engine.asked) for engine in engines] == [1, 0]
        assert fleet.members[0].lost is None

    run(2, act)


def test_with_the_last_engine_every_reason_is_told() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        for engine in engines:
            engine.error = EngineLost(f"engine {engine.number} died")
        with pytest.raises(EngineLost, match="no engine is left: engine 0 died; engine 1 died"):
            await ask(fleet, 0)

    run(2, act)


def test_a_silent_engine_that_fails_its_health_check_is_lost() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        engines[0].open.clear()
        engines[0].well = False
        assert await asyncio.wait_for(ask(fleet, 0), 5) == 1
        assert fleet.members[0].lost == "no answer for 0.1 s, and its health check failed"

    run(2, act, patience=0.1)


def test_an_engine_that_is_paused_is_not_blamed_for_its_silence() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        engines[0].open.clear()
        engines[0].well, engines[0].tells = False, False
        waiting = asyncio.create_task(ask(fleet, 0))
        await asyncio.sleep(0)
        fleet.hold(True)
        await asyncio.sleep(0.5)
        fleet.hold(False)
        await asyncio.sleep(0.05)  # its time begins anew
        assert fleet.members[0].lost is None
        engines[0].open.set()
        assert await waiting == 0
        engines[0].open.clear()
        assert await asyncio.wait_for(ask(fleet, 0), 5) == 1

    run(2, act, patience=0.2)


def test_a_silent_engine_that_is_well_is_waited_for() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        engines[0].open.clear()
        waiting = asyncio.create_task(ask(fleet, 0))
        await asyncio.sleep(0.4)
        assert not waiting.done()
        engines[0].open.set()
        assert await waiting == 0

    run(2, act, patience=0.1)


def test_a_request_that_an_engine_forgot_is_made_again_while_its_long_one_is_waited_for() -> None:
    """An engine that is well and answers others used to be waited for until engine.request_timeout."""

    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        (engine,) = engines
        engine.open.clear()
        long = asyncio.create_task(ask(fleet, 0))  # what it holds is counted, not which
        await asyncio.sleep(0.3)
        assert engine.asked == [0]
        engine.open.set()
        assert await long == 0
        engine.forgets = True
        lost = asyncio.create_task(ask(fleet, 1))
        await asyncio.sleep(0.01)
        deadline = asyncio.get_running_loop().time() + 60
        while not lost.done():
            assert asyncio.get_running_loop().time() < deadline
            assert await ask(fleet, 2) == 0  # it goes on answering
            await asyncio.sleep(0.01)
        assert lost.result() == 0
        assert engine.asked.count(1) == 2
        (member,) = fleet.members
        assert (member.forgotten, member.lost) == (1, None)

    run(1, act, patience=0.1)


def test_an_engine_that_does_not_say_what_it_holds_is_waited_for() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        engines[0].forgets, engines[0].tells = True, False
        waiting = asyncio.create_task(ask(fleet, 0))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        assert engines[0].asked == [0]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    run(1, act, patience=0.1)


def test_a_request_that_is_forgotten_again_and_again_fails_its_episode_alone() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        async def forgetting() -> None:
            while True:
                engines[0].forgets = True
                await asyncio.sleep(0)

        always = asyncio.create_task(forgetting())
        with pytest.raises(EngineError, match="engine 0 has lost the answer 3 times") as caught:
            await ask(fleet, 0)
        always.cancel()
        assert not isinstance(caught.value, EngineLost)
        assert fleet.members[0].lost is None
        assert engines[0].asked == [0, 0, 0]

    run(1, act, patience=0.1)


def test_a_cancelled_episode_is_cancelled_not_moved() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        engines[0].open.clear()
        waiting = asyncio.create_task(ask(fleet, 0))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [len(engine.asked) for engine in engines] == [1, 0]
        assert fleet.members[0].lost is None

    run(2, act)


def test_engines_that_are_near_serve_alone_while_one_of_them_does() -> None:
    async def main() -> list[int]:
        engines = [FakeEngine(number) for number in range(3)]
        async with Fleet(engines, patience=60.0, near=[1]) as fleet:
            found = [await ask(fleet, session) for session in range(4)]
            fleet.lose(1, "it died")
            return found + [await ask(fleet, session) for session in range(4)]

    asked = asyncio.run(main())
    assert asked[:4] == [1] * 4
    assert set(asked[4:]) == {0, 2}


def test_a_request_of_an_engine_that_is_lost_and_serves_again_at_once_is_made_again() -> None:
    """Its episode used to vanish: the cancellation was taken for the caller's."""

    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        engines[0].open.clear()
        waiting = asyncio.create_task(ask(fleet, 0))
        await asyncio.sleep(0.01)
        fleet.lose(0, "it died")
        fleet.readmit(0)
        engines[0].open.set()
        assert await waiting == 0
        assert engines[0].asked == [0, 0]
        assert fleet.members[0].forgotten == 0

    run(2, act)


def test_an_engine_that_is_slow_to_say_what_it_holds_does_not_hide_another_s_silence() -> None:
    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        async def never() -> int | None:
            await asyncio.sleep(3600)
            return None

        engines[0].held = never
        for engine in engines:
            engine.open.clear()
        waiting = [asyncio.create_task(ask(fleet, session)) for session in range(2)]
        await asyncio.sleep(0.5)
        assert fleet.members[0].question is not None
        engines[1].well = False
        while fleet.members[1].lost is None:
            await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def limited(fleet: Fleet, engines: list[FakeEngine]) -> None:
        await asyncio.wait_for(act(fleet, engines), 30)

    run(2, limited, patience=0.1)


def test_places_of_old_sessions_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gigpo_mega.rollout.engines.fleet.REMEMBERED", 3)

    async def act(fleet: Fleet, engines: list[FakeEngine]) -> None:
        for session in range(10):
            await ask(fleet, session)
        assert list(fleet._places) == [7, 8, 9]

    run(2, act)
