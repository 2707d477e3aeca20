"""The chat endpoint: HTTP on this machine, and which episode a request belongs to."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from envs.agent import Connection
from envs.base import Task
from gigpo_mega.rollout.engines.base import Sampling
from gigpo_mega.rollout.episode import OnStep
from gigpo_mega.rollout.gateway.requests import ChatRequest, Refusal, read_body
from gigpo_mega.rollout.gateway.session import Policy, Session

MODEL = "policy"
LARGEST_BODY = 16 * 2**20  # bytes
_BACKLOG = 1024  # connections that wait to be accepted


class Gateway:
    """`POST /v1/chat/completions` and `GET /v1/models` on the loopback; entered once per event loop.

    `limit` is the number of calls of an episode that are answered.
    """

    def __init__(self, policy: Policy, limit: int) -> None:
        self.policy = policy
        self._limit = limit
        self._sessions: dict[str, Session] = {}
        self._numbers = itertools.count()
        self._warned = False

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[_refusals], client_max_size=LARGEST_BODY)
        app.add_routes([web.post("/v1/chat/completions", self._chat), web.get("/v1/models", self._models)])
        # A request whose agent has hung up is cancelled: nobody acts on its answer.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @contextmanager
    def episode(
        self, task: Task, sampling: Sampling, on_step: OnStep
    ) -> Iterator[tuple[Session, Connection]]:
        """A new episode, whose requests are answered inside the block."""
        session = Session(self.policy, task, next(self._numbers), sampling, on_step, self._limit)
        self._sessions[session.key] = session
        host, port = self._runner.addresses[0][:2]
        try:
            yield session, Connection(f"http://{host}:{port}/v1", session.key, MODEL)
        finally:
            del self._sessions[session.key]
            session.close()

    async def _chat(self, request: web.Request) -> web.Response:
        session = self._session(request)
        chat = read_body(await request.read())
        if chat.model != MODEL:
            raise Refusal(
                f"there is no model {chat.model!r:.80}; the policy is called {MODEL} (connection.model)",
                status=404,
                code="model_not_found",
                param="model",
            )
        self._warn(session, chat)
        answer = await session.answer(chat)
        head = {"object": "chat.completion", "created": int(time.time()), "model": MODEL}
        return web.json_response(head | answer)

    async def _models(self, request: web.Request) -> web.Response:
        self._session(request)
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "gigpo-mega"}
        return web.json_response({"object": "list", "data": [model]})

    def _session(self, request: web.Request) -> Session:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        session = self._sessions.get(key.strip())
        if scheme.lower() != "bearer" or session is None:
            raise Refusal(
                "unknown api key: it must be the one of an episode that is being played (connection.api_key)",
                status=401,
                code="invalid_api_key",
            )
        return session

    def _warn(self, session: Session, chat: ChatRequest) -> None:
        """Say once that the run decides how answers are sampled."""
        if chat.overruled and not self._warned:
            self._warned = True
            sampling = session.sampling
            sys.stderr.write(
                f"the agent asks for {', '.join(chat.overruled)}; the run samples with temperature "
                f"{sampling.temperature} and top_p {sampling.top_p}, as its configuration says\n"
            )


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _refusals(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Errors in the form that OpenAI's clients read; none is worth another try of theirs."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _error(refusal)
    except web.HTTPRequestEntityTooLarge:
        return _error(Refusal(f"the body is larger than {LARGEST_BODY} bytes", 413))
    except web.HTTPException as error:
        return _error(Refusal(f"{request.method} {request.path:.80}: {error.reason}", error.status))


def _error(refusal: Refusal) -> web.Response:
    headers: dict[str, Any] = {"x-should-retry": "false"}
    return web.json_response(refusal.payload(), status=refusal.status, headers=headers)
