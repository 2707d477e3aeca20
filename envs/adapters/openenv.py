"""OpenEnv servers (openenv-core 0.2 and newer, BSD-3): one WebSocket session per slot.

Since 0.2 a server makes a new environment for every HTTP request: a POST to /step does not see the preceding
POST to /reset, and only /ws keeps an episode. Servers of 0.1 have one environment and no /ws; transport
`http` is for those, one episode at a time.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

import aiohttp

from envs.adapters import text_of
from envs.base import EnvError, EnvironmentKind, EnvUnavailable, Observation, Task, Transition
from envs.records import records_or_seeds

_INVALID = "VALIDATION_ERROR"


class OpenEnvEnvironment:
    """The server at `url`; the policy's action becomes the field `action` of the server's action.

    `actions` names the values of that field, which are listed as admissible; without it the field is free
    text. `fixed` holds further fields. The agent sees the observation's field `show`, or without it the whole
    observation as JSON. A task is a seed or a record of reset arguments. An action that the server's schema
    refuses is invalid and changes nothing. An episode succeeds if it ends with a reward of `success_at` or
    more.
    """

    def __init__(
        self,
        url: str,
        action: str,
        actions: Mapping[str, Any] | None = None,
        fixed: Mapping[str, Any] | None = None,
        show: str = "",
        instruction: str = "",
        success_at: float = 1.0,
        transport: str = "websocket",
        timeout: float = 60.0,
    ) -> None:
        if transport not in _TRANSPORTS:
            known = ", ".join(_TRANSPORTS)
            raise EnvError(f"environment.options.transport: unknown {transport!r}; known: {known}")
        self._url, self._timeout = url.rstrip("/"), timeout
        self._loop = asyncio.new_event_loop()
        self._server = _TRANSPORTS[transport](self._url)
        atexit.register(self.close)
        self._action, self._actions, self._fixed = action, dict(actions or {}), dict(fixed or {})
        self._show, self._instruction, self._success_at = show, instruction, success_at
        self._seen = Observation("")

    def reset(self, task: Task) -> Observation:
        """Resets with the seed or the arguments in `task.source`."""
        given = json.loads(task.source)
        self._wait(self._server.open())
        arguments = {"seed": given} if isinstance(given, int) else given
        return self._observe(self._wait(self._server.ask("reset", arguments)))

    def step(self, action: str) -> Transition:
        """Sends the action; raises EnvUnavailable if the server fails."""
        if self._actions and action.strip() not in self._actions:
            return Transition(self._seen, 0.0, False, False, valid=False)
        sendable = action.encode("utf-8", "replace").decode()  # a lone surrogate would end the session
        value = self._actions[action.strip()] if self._actions else sendable
        try:
            answer = self._wait(self._server.ask("step", {**self._fixed, self._action: value}))
        except _RefusedError:
            return Transition(self._seen, 0.0, False, False, valid=False)
        reward, done = float(answer.get("reward") or 0.0), bool(answer.get("done"))
        success = done and reward >= self._success_at
        return Transition(self._observe(answer), reward, done, success, valid=True)

    def close(self) -> None:
        """Ends the session."""
        self._wait(self._server.close())

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self._loop.run_until_complete(asyncio.wait_for(work, self._timeout))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EnvUnavailable(f"environment.options.url {self._url}: {error or repr(error)}") from None

    def _observe(self, answer: Mapping[str, Any]) -> Observation:
        shown = answer["observation"]
        if self._show and self._show not in shown:
            known = ", ".join(shown)
            raise EnvError(f"environment.options.show: no field {self._show!r}; known: {known}")
        text = text_of(shown[self._show] if self._show else shown)
        self._seen = Observation(text, tuple(self._actions), self._instruction)
        return self._seen


class _RefusedError(Exception):
    """The server's schema does not accept the action."""


class _Transport(Protocol):
    """A connection to the server at `url`; what fails raises EnvError or an error of aiohttp."""

    def __init__(self, url: str) -> None: ...

    async def open(self) -> None:
        """Prepare for an episode."""

    async def ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The server's answer to a `reset` or `step`."""
        ...

    async def close(self) -> None:
        """Close the connection."""


class _Http:
    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> None:
        async with aiohttp.ClientSession() as client, client.get(f"{self._url}/schema") as answer:
            if answer.status == 200:
                raise EnvError(
                    f"environment.options.transport http: {self._url} forgets an episode between requests; "
                    "use websocket"
                )

    async def ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {"action": data} if kind == "step" else data
        address = f"{self._url}/{kind}"
        async with aiohttp.ClientSession() as client, client.post(address, json=body) as answer:
            if answer.status == 422 and kind == "step":
                raise _RefusedError
            if answer.status != 200:
                error = EnvUnavailable if answer.status >= 500 else EnvError
                raise error(f"{address} answered {answer.status}: {(await answer.text())[:200]}")
            return await answer.json()

    async def close(self) -> None:
        pass


class _WebSocket:
    def __init__(self, url: str) -> None:
        self._url = url
        self._client: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def open(self) -> None:
        if self._client is None:
            self._client = aiohttp.ClientSession()
        if self._socket is None or self._socket.closed:  # also if the server ended an idle session
            self._socket = await self._client.ws_connect(f"{self._url}/ws", max_msg_size=0)

    async def ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._socket is None:
            raise EnvError("OpenEnv: no episode is running; call reset first")
        await self._socket.send_json({"type": kind, "data": data})
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise EnvUnavailable(f"{self._url}/ws: the server closed the session; {message.extra or ''}")
        answer = json.loads(message.data)
        if answer["type"] != "error":
            return answer["data"]
        if answer["data"].get("code") == _INVALID and kind == "step":
            raise _RefusedError
        with contextlib.suppress(aiohttp.ClientError):
            await self._socket.close()
        raise EnvError(f"{self._url}/ws: {answer['data'].get('code')}: {answer['data'].get('message')}")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = self._socket = None


_TRANSPORTS: Mapping[str, type[_Transport]] = {"websocket": _WebSocket, "http": _Http}

KIND = EnvironmentKind(OpenEnvEnvironment, records_or_seeds)
