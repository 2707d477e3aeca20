"""What a healthy server forgot is asked again, what nobody waits for is ended: a fake server, a real one."""

from __future__ import annotations

import asyncio

import pytest
from fake_server import FakeServer, talk

from gigpo_mega.rollout.engines.base import EngineError, EngineLost, Sampling
from gigpo_mega.rollout.engines.fleet import Fleet
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from tests.conftest import Served


def test_an_answer_that_a_healthy_server_loses_is_asked_again_while_others_come() -> None:
    """It accepts a request and never answers it, but others, which keep it busy, and says that it is well."""
    server = FakeServer(delay=lambda prompt: 5.0 if prompt[0] == 9 else 0.01)

    async def conversation(engine: SGLangEngine) -> tuple[list[int], float, str | None]:
        async with Fleet([SGLangEngine(engine.url)], patience=0.4) as fleet:
            server.forget = True
            begin = asyncio.get_running_loop().time()
            lost = asyncio.create_task(fleet.generate([7, 2], Sampling(), 1))
            await asyncio.sleep(0.1)
            long = asyncio.create_task(fleet.generate([9, 1], Sampling(), 0))

            async def episode(session: int) -> None:
                while not (lost.done() or long.done()):
                    await fleet.generate([7, 3], Sampling(), session)
                    await asyncio.sleep(0.01)  # in its environment

            await asyncio.gather(*map(episode, range(2, 10)))
            seconds = asyncio.get_running_loop().time() - begin
            assert not long.done()
            both = [(await lost).response_ids[0], (await long).response_ids[0]]
            return [int(token) for token in both], seconds, fleet.members[0].lost

    answers, seconds, lost = talk(server, conversation)
    assert answers == [3, 2]
    assert lost is None
    assert seconds >= 0.6  # the patience, and half of it for the looks
    asked = [prompt for batch in server.batches for prompt in batch]
    assert (asked.count([7, 2]), asked.count([9, 1])) == (2, 1)
    assert len(server.aborted) == 1  # if it is answered after all, it is so for nobody


def test_a_response_that_takes_too_long_fails_alone_and_costs_no_engine() -> None:
    """It used to take one healthy engine after another out of service, with all that they had under way."""
    server = FakeServer(delay=lambda prompt: 99.0 if prompt[0] == 9 else 0.01)

    async def conversation(engine: SGLangEngine) -> tuple[int, str | None]:
        async with Fleet([SGLangEngine(engine.url, timeout=0.5)], patience=0.1) as fleet:
            long = asyncio.create_task(fleet.generate([9, 1], Sampling(), 0))
            answers = 0
            while not long.done():
                await fleet.generate([7, 3], Sampling(), 1)
                answers += 1
            with pytest.raises(EngineError, match=r"within engine\.request_timeout 0\.5 s") as caught:
                await long
            assert not isinstance(caught.value, EngineLost)
            return answers, fleet.members[0].lost

    answers, lost = talk(server, conversation)
    assert (answers > 5, lost) == (True, None)


def test_what_a_server_holds_is_not_less_than_it_is_at_work_on() -> None:
    """SGLang leaves out a prompt that is computed in parts, and batches of other pipeline stages."""
    server = FakeServer(delay=lambda prompt: 2.0)

    async def conversation(engine: SGLangEngine) -> tuple[int | None, ...]:
        waiting = asyncio.create_task(engine.generate([9, 1], Sampling()))
        await asyncio.sleep(0.2)
        found = [await engine.held()]
        server.load = {"num_waiting_uncached_tokens": 512}
        found.append(await engine.held())
        server.stages = 2
        async with SGLangEngine(engine.url) as another:
            found.append(await another.held())
        waiting.cancel()
        return tuple(found)

    assert talk(server, conversation) == (1, 2, None)


def test_the_server_stops_what_nobody_waits_for() -> None:
    """An episode that is given up used to be sampled to its end."""
    server = FakeServer(delay=lambda prompt: 2.0 if prompt[0] == 9 else 0.0)

    async def conversation(engine: SGLangEngine) -> tuple[int | None, int | None, int]:
        await engine.generate([7, 2], Sampling())
        waiting = asyncio.create_task(engine.generate([9, 1], Sampling()))
        unsent = asyncio.create_task(engine.generate([9, 2], Sampling()))
        await asyncio.sleep(0)
        unsent.cancel()
        await asyncio.sleep(0.2)
        before = await engine.held()
        waiting.cancel()
        await asyncio.sleep(0.2)
        return before, await engine.held(), len(server.aborted)

    assert talk(server, conversation)[:2] == (1, 0)
    assert server.batches == [[[7, 2]], [[9, 1]]]


def test_a_real_server_stops_what_nobody_waits_for(served: Served) -> None:
    async def main() -> None:
        async with SGLangEngine(served.url) as engine:
            waiting = asyncio.create_task(engine.generate([1, 2], Sampling(max_new_tokens=250)))
            while not await engine.held():
                assert not waiting.done()
            waiting.cancel()
            begin = asyncio.get_running_loop().time()
            while await engine.held():
                assert asyncio.get_running_loop().time() < begin + 30
            again = await engine.generate([1, 2], Sampling(max_new_tokens=2, temperature=0.0))
            assert len(again.response_ids) == 2

    asyncio.run(main())


def test_a_real_server_that_is_busy_is_not_said_to_forget(served: Served) -> None:
    """Some requests are always on their way, and what it tells of its load is some steps old."""

    class Watched(SGLangEngine):
        looks = 0

        async def held(self) -> int | None:
            Watched.looks += 1
            return await super().held()

    async def main() -> None:
        async with Fleet([Watched(served.url)], patience=0.1) as fleet:

            async def episode(session: int) -> None:
                for turn in range(30):
                    length = 200 if (session + turn) % 24 == 0 else 5
                    await fleet.generate([session, turn], Sampling(max_new_tokens=length), session)

            await asyncio.gather(*map(episode, range(64)))
            assert fleet.members[0].forgotten == 0

    asyncio.run(main())
    assert Watched.looks > 0
