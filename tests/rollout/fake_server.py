"""A server that answers as SGLang does, and conversations with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from gigpo_mega.rollout.engines.sglang import SGLangEngine


class FakeServer:
    """Answers /generate as SGLang does: the prompt's last token + 1, after `delay(prompt)` seconds."""

    def __init__(self, delay: Callable[[list[int]], float] = lambda prompt: 0.0) -> None:
        self.batches: list[list[list[int]]] = []
        self.delay = delay
        self.tokens = 1  # of an answer
        self.refuse = False
        self.forget = False  # the next batch is never answered, though everything else is
        self.unanswered: set[str] = set()  # the names of requests that it holds
        self.aborted: list[str] = []
        self.load: dict[str, int] = {}  # what it says besides
        self.stages = 1
        self.cut = False
        self.served: set[Any] = set()  # connections; one that is used again is reset
        self.answer: dict[str, Any] = {}  # replaces parts of every answer
        self.raw: bytes | None = None  # sent instead of any answer
        self.meta: dict[str, Any] = {
            "weight_version": "3",
            "cached_tokens": 0,
            "finish_reason": {"type": "stop"},
        }

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert request.transport is not None
        if request.transport in self.served:
            request.transport.abort()
        self.served.add(request.transport)
        self.batches.append(body["input_ids"])
        if self.refuse:
            return web.json_response({"error": "too long"}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        if self.forget:
            self.forget = False
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.05)
            return response
        if self.raw is not None:
            await response.write(self.raw)
            return response
        self.unanswered |= set(body["rid"])
        order = sorted(enumerate(body["input_ids"]), key=lambda item: self.delay(item[1]))
        waited = 0.0
        for index, prompt in order:
            await asyncio.sleep(self.delay(prompt) - waited)
            waited = self.delay(prompt)
            token = prompt[-1] + 1
            meta = {**self.meta, "output_token_logprobs": [[-0.5, token, None]] * self.tokens}
            if body["rid"][index] in self.aborted:
                meta["finish_reason"] = {"type": "abort", "message": "Aborted"}
            answer = {"index": index, "output_ids": [token] * self.tokens, "meta_info": meta} | self.answer
            self.unanswered.discard(body["rid"][index])
            await response.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
            if self.cut:
                return response
        await response.write(b"data: [DONE]\n\n")
        return response

    async def abort(self, request: web.Request) -> web.Response:
        """It no longer holds a request; one that it does not hold is no error."""
        name = (await request.json())["rid"]
        self.aborted.append(name)
        self.unanswered.discard(name)
        return web.Response()

    async def loads(self, request: web.Request) -> web.Response:
        """As SGLang does of its schedulers: what it was asked for and has not answered."""
        del request
        load = {"num_running_reqs": len(self.unanswered), "num_waiting_reqs": 0} | self.load
        return web.json_response({"loads": [load]})

    async def info(self, request: web.Request) -> web.Response:
        """How many pipeline stages it has."""
        del request
        return web.json_response({"pp_size": self.stages})

    async def healthy(self, request: web.Request) -> web.Response:
        """It always is."""
        del request
        return web.Response()


def talk(
    server: FakeServer, conversation: Callable[[SGLangEngine], Awaitable[Any]], window: float = 0.002
) -> Any:
    async def run() -> Any:
        app = web.Application()
        app.router.add_post("/generate", server.generate)
        app.router.add_post("/abort_request", server.abort)
        app.router.add_get("/v1/loads", server.loads)
        app.router.add_get("/server_info", server.info)
        app.router.add_get("/health_generate", server.healthy)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            async with SGLangEngine(f"http://127.0.0.1:{port}", window=window) as engine:
                return await conversation(engine)
        finally:
            await runner.cleanup()

    return asyncio.run(run())
