"""A retriever over HTTP: `python -m envs.search.server --corpus corpus.jsonl`.

`POST /retrieve` takes Search-R1's `{"queries": [..], "topk": 3, "return_scores": true}` and verl-agent's
`{"query": "..", "topk": 3}`; both are answered with `{"result": [[{"document": {"contents": ..}, "score": f},
..], ..]}`, one list per query, or without scores by the documents themselves. `GET /health` describes what
is served. Requests wait in a bounded queue and are searched in batches; if the queue is full the answer is
429, if a request waited too long 503, both with Retry-After. There is no authentication, so the server binds
to loopback unless `--host` is given.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web

from envs.program import run
from envs.search.retrieval import Hit, Retriever, open_corpus
from envs.search.wire import Refused, Request, ServerLimits, read_request, result_row

_LOG = logging.getLogger("envs.search.server")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


Waiting = tuple[Request, asyncio.Future[list[list[Hit]]]]


class Busy(Exception):
    """The queue is full."""


class Batcher:
    """Searches the queries of many requests together, in one thread next to the event loop.

    `search` raises Busy if `limits.queue` queries are waiting already. Requests with different topk share a
    batch, which is searched with the largest.
    """

    def __init__(self, retriever: Retriever, limits: ServerLimits) -> None:
        self.waiting = 0
        self._retriever, self._limits = retriever, limits
        self._requests: asyncio.Queue[Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "search")

    async def search(self, request: Request) -> list[list[Hit]]:
        """The hits for each query of a request."""
        if self.waiting + len(request.queries) > self._limits.queue:
            raise Busy
        answer: asyncio.Future[list[list[Hit]]] = asyncio.get_running_loop().create_future()
        self.waiting += len(request.queries)
        try:
            self._requests.put_nowait((request, answer))
            return await answer
        finally:
            self.waiting -= len(request.queries)

    async def run(self) -> None:
        """Processes the queue until it is canceled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            queries = [query for request, _ in batch for query in request.queries]
            topk = max((request.topk for request, _ in batch), default=0)
            if not queries:
                continue
            found: Sequence[list[Hit]] | Exception
            try:
                found = await loop.run_in_executor(self._thread, self._retriever.search, queries, topk)
            except Exception as error:  # the retriever's; it fails these requests, not the server
                found = error
            _deliver(batch, found)

    async def _next(self) -> list[Waiting]:
        """The waiting requests, up to a batch, without those that timed out."""
        batch = [await self._requests.get()]
        size = len(batch[0][0].queries)
        while size < self._limits.batch and not self._requests.empty():
            request, answer = self._requests.get_nowait()
            if not answer.done():
                batch.append((request, answer))
                size += len(request.queries)
        return [(request, answer) for request, answer in batch if not answer.done()]


def _deliver(batch: Sequence[Waiting], found: Sequence[list[Hit]] | Exception) -> None:
    start = 0
    for request, answer in batch:
        end = start + len(request.queries)
        if answer.done():
            pass
        elif isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result([hits[: request.topk] for hits in found[start:end]])
        start = end


def make_app(
    retriever: Retriever, about: Mapping[str, Any], limits: ServerLimits | None = None
) -> web.Application:
    """The server's application; `about` is added to the answer of /health."""
    limits = limits or ServerLimits()
    batcher = Batcher(retriever, limits)

    async def retrieve(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(limits.seconds):
                asked = read_request(await request.read(), limits)
                found = await batcher.search(asked)
        except Refused as error:
            return _refusal(error.status, str(error))
        except Busy:
            return _refusal(429, f"{limits.queue} queries are waiting; try again", retry=True)
        except TimeoutError:
            return _refusal(503, f"not searched within {limits.seconds} s; try again", retry=True)
        return web.json_response(
            {"result": [[result_row(hit, asked.scores) for hit in hits] for hits in found]}
        )

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "waiting": batcher.waiting, **about})

    async def life(_: web.Application) -> AsyncIterator[None]:
        working = asyncio.create_task(batcher.run())
        yield
        working.cancel()

    app = web.Application(client_max_size=limits.body)
    app.router.add_post("/retrieve", retrieve)
    app.router.add_get("/health", health)
    app.cleanup_ctx.append(life)
    return app


def _refusal(status: int, message: str, retry: bool = False) -> web.Response:
    headers = {"Retry-After": "1"} if retry else {}
    return web.json_response({"error": message}, status=status, headers=headers)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; raises EnvError for a corpus or model that cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.search.server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="jsonl with `contents`, or `title` and `text`"
    )
    parser.add_argument("--host", default="127.0.0.1", help="another address opens it to the network")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dense", type=Path, help="folder of a sentence-embedding model; default: BM25")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    retriever = open_retriever(options.corpus, options.dense)
    host: str = options.host
    if host not in _LOOPBACK:
        _LOG.warning("%s: anyone who reaches this address can search; there is no authentication", host)
    about = {"retriever": retriever.name, "passages": len(retriever.passages)}
    _LOG.info(
        "%s passages by %s on http://%s:%s/retrieve", *reversed(about.values()), options.host, options.port
    )
    web.run_app(make_app(retriever, about), host=options.host, port=options.port, print=None, access_log=None)


def open_retriever(corpus: Path, dense: Path | None) -> Any:
    """BM25 over a corpus, or embeddings of the model in the folder `dense`."""
    if dense is None:
        return open_corpus(str(corpus))
    from envs.search.dense import open_dense

    return open_dense(corpus, dense)


if __name__ == "__main__":
    run(main)
