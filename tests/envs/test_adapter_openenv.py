"""The adapter to OpenEnv, over real connections to a server of the documented messages.

The server answers /ws as openenv-core 0.3's does, and /reset and /step as 0.1's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from envs.adapters.openenv import KIND, OpenEnvEnvironment
from envs.base import EnvError, Task


class FakeCounting:
    """One session: count down from a number that the seed gives."""

    def __init__(self) -> None:
        self.left = 0

    def reset(self, data: dict[str, Any]) -> dict[str, Any]:
        self.left = data["start"] if "start" in data else Random(data["seed"]).randint(2, 9)
        return {"observation": {"left": f"{self.left} left", "hint": 1}, "reward": None, "done": False}

    def step(self, action: dict[str, Any]) -> dict[str, Any]:
        if action.keys() != {"take"} or not isinstance(action["take"], int | str):
            raise TypeError("no such action")
        if action["take"] == "crash":
            raise ZeroDivisionError("in the environment")
        self.left -= action["take"] == 1
        done = self.left == 0
        return {"observation": {"left": f"{self.left} left", "hint": 1}, "reward": float(done), "done": done}


class FakeServer:
    """Both transports on one port, in a thread; `capacity` sessions at most."""

    def __init__(self, stateless: bool) -> None:
        self.shared, self.sessions, self.capacity = FakeCounting(), 0, 8
        self.stateless = stateless
        self.url, self.clients = "", list[OpenEnvEnvironment]()
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/ws", self._session)
        app.router.add_post("/reset", self._reset)
        app.router.add_post("/step", self._step)
        if self.stateless:
            app.router.add_get("/schema", lambda _: _answer({"action": {}}))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        socket, counting = web.WebSocketResponse(), FakeCounting()
        await socket.prepare(request)
        self.sessions += 1
        if self.sessions > self.capacity:
            await socket.send_json(_error("CAPACITY_REACHED", "all sessions are taken"))
            return socket
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            asked = message.json()
            try:
                answer = getattr(counting, asked["type"])(asked["data"])
                await socket.send_json({"type": "observation", "data": answer})
            except TypeError:
                await socket.send_json(_error("VALIDATION_ERROR", "Invalid message"))
            except ZeroDivisionError as error:
                await socket.send_json(_error("EXECUTION_ERROR", str(error)))
        self.sessions -= 1
        return socket

    async def _reset(self, request: web.Request) -> web.Response:
        return web.json_response(self.shared.reset(await request.json()))

    async def _step(self, request: web.Request) -> web.Response:
        try:
            return web.json_response(self.shared.step((await request.json())["action"]))
        except TypeError as error:
            return web.json_response({"detail": str(error)}, status=422)


async def _answer(body: dict[str, Any]) -> web.Response:
    return web.json_response(body)


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "data": {"code": code, "message": message}}


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    server = FakeServer(stateless=getattr(request, "param", False))
    yield server
    server.close()


def environment(server: FakeServer, **options: Any) -> OpenEnvEnvironment:
    settings: dict[str, Any] = {
        "url": server.url,
        "action": "take",
        "actions": {"one": 1, "none": 0},
        "show": "left",
    }
    made = OpenEnvEnvironment(**settings | options)
    server.clients.append(made)
    return made


def seed(number: int) -> Task:
    return Task(f"train/{number}", "seed", str(number))


@pytest.mark.parametrize("transport", ["websocket", "http"])
def test_an_episode_pays_its_rewards_and_ends_over_either_transport(
    server: FakeServer, transport: str
) -> None:
    played = environment(server, transport=transport, instruction="count down")
    first = played.reset(seed(4))
    count = int(first.text.split()[0])
    assert (first.admissible, first.instruction) == (("one", "none"), "count down")
    taken = [played.step("one") for _ in range(count)]
    assert [t.done for t in taken] == [False] * (count - 1) + [True]
    assert [t.success for t in taken] == [False] * (count - 1) + [True]
    assert taken[-1].reward == 1.0
    assert played.reset(seed(4)) == first


def test_sessions_do_not_see_each_other(server: FakeServer) -> None:
    one, other = environment(server), environment(server)
    first = one.reset(seed(1))
    other.reset(Task("row", "row", '{"start": 7}'))
    assert other.step("one").observation.text == "6 left"
    assert one.step("none").observation.text == first.text


@pytest.mark.parametrize("transport", ["websocket", "http"])
def test_what_the_schema_refuses_is_invalid_and_changes_nothing(server: FakeServer, transport: str) -> None:
    refusing = environment(server, fixed={"hand": "left"}, transport=transport)
    before = refusing.reset(seed(2))
    refused = refusing.step("one")
    assert (refused.valid, refused.done, refused.observation) == (False, False, before)
    named = environment(server, transport=transport)
    before = named.reset(seed(2))
    for said in ("", "two", "a" * 100_000, "\0\x1b[2J", "\ud800"):
        assert named.step(said).observation == before
        assert not named.step(said).valid


def test_free_text_is_sent_as_it_is(server: FakeServer) -> None:
    free = environment(server, actions=None, show="")
    assert free.reset(seed(2)).text == '{"hint": 1, "left": "2 left"}'
    for said in ("看", "a" * 100_000, "\ud800", "\0"):
        assert free.step(said).valid


def test_a_failure_is_one_line_and_the_next_episode_gets_a_new_session(server: FakeServer) -> None:
    failing = environment(server, actions=None)
    failing.reset(seed(3))
    with pytest.raises(EnvError, match="EXECUTION_ERROR: in the environment"):
        failing.step("crash")
    assert failing.reset(seed(3)).text.endswith("left")
    server.capacity = 0
    with pytest.raises(EnvError, match="CAPACITY_REACHED: all sessions are taken"):
        environment(server).reset(seed(1))
    with pytest.raises(EnvError, match=r"environment.options.url http://127.0.0.1:9: Cannot connect"):
        OpenEnvEnvironment("http://127.0.0.1:9", "take").reset(seed(1))
    with pytest.raises(EnvError, match="unknown 'carrier pigeon'; known: websocket, http"):
        environment(server, transport="carrier pigeon")
    server.capacity = 8
    with pytest.raises(
        EnvError, match=r"environment.options.show: no field 'right'; known: left, hint"
    ):
        environment(server, show="right").reset(seed(1))


@pytest.mark.parametrize("server", [True], indirect=True)
def test_http_is_refused_if_the_server_forgets_episodes(server: FakeServer) -> None:
    with pytest.raises(EnvError, match="forgets an episode between requests; use websocket"):
        environment(server, transport="http").reset(seed(1))


def test_tasks_are_seeds_with_distinct_splits() -> None:
    tasks = KIND.tasks(train=3, test=2)
    assert [t.source for t in tasks.tasks("train")] == ["0", "1", "2"]
    assert [t.source for t in tasks.tasks("test")] == [str(2**20), str(2**20 + 1)]
