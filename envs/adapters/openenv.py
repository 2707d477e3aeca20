"""OpenEnv servers (openenv-core 0.2 and newer, BSD-3): a session for each slot, over a WebSocket.

From 0.2 on a server makes a new environment for every HTTP request: a POST to /step knows nothing of the one
to /reset before it, and only /ws keeps an episode. Servers of 0.1 have one environment and no /ws; transport
`http` is for those, one episode at a time.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from envs.adapters import text_of
from envs.base import EnvironmentError, EnvironmentKind, Observation, Task, Transition
from envs.rows import rows_or_seeds

_INVALID = "VALIDATION_ERROR"


class OpenEnvEnvironment:
    """The server at `url`; the policy's action becomes the field `action` of the server's action.

    `actions` are names for that field's values, listed as admissible, where it is not free text; `fixed` are
    further fields. Shown is the observation's field `show`, without it the whole as JSON. A task is a seed,
    or a row of arguments of reset. An action that the server's schema refuses is invalid and changes nothing.
    Success is an episode that ends with a reward of `success_at` or more.
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
            raise EnvironmentError(f"environment.options.transport: unknown {transport!r}; known: {known}")
        self._server = _TRANSPORTS[transport](url.rstrip("/"), timeout)
        self._action, self._actions, self._fixed = action, dict(actions or {}), dict(fixed or {})
        self._show, self._instruction, self._success_at = show, instruction, success_at
        self._seen = Observation("")

    def reset(self, task: Task) -> Observation:
        """Resets with the seed or the arguments in `task.source`."""
        given = json.loads(task.source)
        self._server.open()
        answer = self._server.ask("reset", {"seed": given} if isinstance(given, int) else given)
        return self._observe(answer)

    def step(self, action: str) -> Transition:
        """Sends the action; raises EnvironmentError where the server fails."""
        if self._actions and action.strip() not in self._actions:
            return Transition(self._seen, 0.0, False, False, valid=False)
        sendable = action.encode("utf-8", "replace").decode()  # a lone surrogate would end the session
        value = self._actions[action.strip()] if self._actions else sendable
        try:
            answer = self._server.ask("step", {**self._fixed, self._action: value})
        except _RefusedError:
            return Transition(self._seen, 0.0, False, False, valid=False)
        reward, done = float(answer.get("reward") or 0.0), bool(answer.get("done"))
        success = done and reward >= self._success_at
        return Transition(self._observe(answer), reward, done, success, valid=True)

    def close(self) -> None:
        """Ends the session."""
        self._server.close()

    def _observe(self, answer: Mapping[str, Any]) -> Observation:
        shown = answer["observation"]
        if self._show and self._show not in shown:
            known = ", ".join(shown)
            raise EnvironmentError(f"environment.options.show: no field {self._show!r}; known: {known}")
        text = text_of(shown[self._show] if self._show else shown)
        self._seen = Observation(text, tuple(self._actions), self._instruction)
        return self._seen


class _RefusedError(Exception):
    """The server's schema does not take the action."""


class _Server:
    """What both transports share: an event loop of their own, and errors in one line."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self._loop = asyncio.new_event_loop()

    def open(self) -> None:
        """Make ready for an episode."""
        self._run(self._opened())

    def ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the server answers to a `reset` or `step`; raises EnvironmentError where it fails."""
        return self._run(self._answered(kind, data))

    def close(self) -> None:
        """Let go of what is open."""

    def _run(self, work: Any) -> Any:
        try:
            return self._loop.run_until_complete(asyncio.wait_for(work, self._timeout))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EnvironmentError(f"environment.options.url {self._url}: {error or repr(error)}") from None

    async def _opened(self) -> None:
        raise NotImplementedError

    async def _answered(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        raise NotImplementedError


class _Http(_Server):
    async def _opened(self) -> None:
        async with aiohttp.ClientSession() as client, client.get(f"{self._url}/schema") as answer:
            if answer.status == 200:
                raise EnvironmentError(
                    f"environment.options.transport http: {self._url} forgets an episode between requests; "
                    "use websocket"
                )

    async def _answered(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {"action": data} if kind == "step" else data
        address = f"{self._url}/{kind}"
        async with aiohttp.ClientSession() as client, client.post(address, json=body) as answer:
            if answer.status == 422 and kind == "step":
                raise _RefusedError
            if answer.status != 200:
                said = (await answer.text())[:200]
                raise EnvironmentError(f"{address} answered {answer.status}: {said}")
            return await answer.json()


class _WebSocket(_Server):
    _client: aiohttp.ClientSession | None = None
    _socket: aiohttp.ClientWebSocketResponse | None = None

    def close(self) -> None:
        if self._client is not None:
            self._run(self._client.close())
            self._client = self._socket = None

    async def _opened(self) -> None:
        if self._socket is None or self._socket.closed:  # also where the server ended an idle session
            if self._client is None:
                self._client = aiohttp.ClientSession()
                atexit.register(self.close)
            self._socket = await self._client.ws_connect(f"{self._url}/ws", max_msg_size=0)

    async def _answered(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._socket is None:
            raise EnvironmentError("OpenEnv: no episode is running; call reset first")
        await self._socket.send_json({"type": kind, "data": data})
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise EnvironmentError(f"{self._url}/ws: the server closed the session; {message.extra or ''}")
        answer = json.loads(message.data)
        if answer["type"] != "error":
            return answer["data"]
        if answer["data"].get("code") == _INVALID and kind == "step":
            raise _RefusedError
        with contextlib.suppress(aiohttp.ClientError):
            await self._socket.close()
        raise EnvironmentError(
            f"{self._url}/ws: {answer['data'].get('code')}: {answer['data'].get('message')}"
        )


_TRANSPORTS = {"websocket": _WebSocket, "http": _Http}

KIND = EnvironmentKind(OpenEnvEnvironment, rows_or_seeds)
