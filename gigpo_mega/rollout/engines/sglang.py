"""The asynchronous client of an SGLang server: requests made at about the same time are one batched POST."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import numpy as np

from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.base import Completion, EngineError, EngineLost, Sampling
from gigpo_mega.types import Int32

HEALTH_SECONDS = 20.0



@dataclass(frozen=True, slots=True)
class _Pending:
    """A request and who waits for its answer."""

    ids: list[int]
    parameters: dict[str, Any]
    answer: asyncio.Future[Completion]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


class SGLangEngine:
    """Talks to the server at `url`.

    A request waits up to `window` seconds for company, and the batch goes as one streaming POST whose answers
    come back one by one as they finish: fewer requests for the server to parse, and still no lock step.
    """

    def __init__(self, url: str, *, timeout: float = 600.0, window: float = 0.002) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._window = window
        self._session: aiohttp.ClientSession | None = None
        self._stages: int | None = None  # of the server's pipeline, once it has been asked
        self._pending: list[_Pending] = []
        self._posts: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            # A kept connection may be closed by the server in the moment it is used again.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for post in self._posts:
            post.cancel()
        await asyncio.gather(*self._posts, return_exceptions=True)
        self._pending.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        """Sample one response; raises EngineError if it is refused, EngineLost if the server fails.

        If the caller is cancelled, the server is told to stop.
        """
        loop = asyncio.get_running_loop()
        request = _Pending(list(prompt_ids), _parameters(sampling), loop.create_future())
        self._pending.append(request)
        if len(self._pending) == 1:
            loop.call_later(self._window, self._flush)
        try:
            return await request.answer
        except asyncio.CancelledError:
            if self._session is not None:
                self._start(_abort(self._session, self.url, request.name))
            raise

    async def healthy(self) -> bool:
        """Whether the server gives an answer within HEALTH_SECONDS, made by its scheduler."""
        assert self._session is not None, "the engine is used outside `async with engine`"
        limit = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
        try:
            async with self._session.get(f"{self.url}/health_generate", timeout=limit) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def held(self) -> int | None:
        """Requests that run or wait in the server's schedulers, or some more; None if it does not say.

        SGLang leaves out a prompt of which a part has been computed, and with pipeline stages whole batches.
        """
        try:
            if self._stages is None:
                self._stages = int((await self._told("/server_info"))["pp_size"])
            if self._stages > 1:
                return None
            loads = (await self._told("/v1/loads"))["loads"]
            known = sum(int(load[f"num_{kind}_reqs"]) for load in loads for kind in ("running", "waiting"))
            return known + sum(bool(load.get("num_waiting_uncached_tokens")) for load in loads)
        except (aiohttp.ClientError, TimeoutError, LookupError, TypeError, ValueError):
            return None

    async def _told(self, path: str) -> Any:
        assert self._session is not None, "the engine is used outside `async with engine`"
        limit = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
        async with self._session.get(self.url + path, timeout=limit) as answer:
            return await answer.json()

    def move(self, url: str) -> None:
        """The server listens at `url` from now on."""
        self.url = url.rstrip("/")

    def _flush(self) -> None:
        batch, self._pending = [request for request in self._pending if not request.answer.done()], []
        if batch:
            self._start(self._send(batch))

    def _start(self, post: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(post)
        self._posts.add(task)
        task.add_done_callback(self._posts.discard)

    async def _send(self, batch: list[_Pending]) -> None:
        payload = {
            "rid": [request.name for request in batch],
            "input_ids": [request.ids for request in batch],
            "sampling_params": [request.parameters for request in batch],
            "return_logprob": True,
            "stream": True,
        }
        try:
            async for answer in self._stream("/generate", payload):
                self._settle(batch, answer)
            raise EngineLost(f"{self.url} closed the stream before all answers had come")
        except Exception as error:  # whatever it is: nobody may wait for ever
            reason = self._reason(error)
            for request in batch:
                if not request.answer.done():
                    request.answer.set_exception(reason)

    def _reason(self, error: Exception) -> Exception:
        """What those who wait for an answer are told when `error` ends a request; itself if it is a bug."""
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return UserError(
                "too many files are open for a connection to the engine: raise the limit (ulimit -n) or "
                "lower rollout.concurrency"
            )
        if isinstance(error, aiohttp.ClientError | ValueError):
            return EngineLost(f"{self.url}: {error!r}")
        if isinstance(error, TimeoutError):  # the server may serve others all the while
            return EngineError(
                f"{self.url} had no answer within engine.request_timeout {self._timeout:g} s; raise it, or "
                "lower rollout.max_response_tokens"
            )
        return error

    def _settle(self, batch: Sequence[_Pending], answer: dict[str, Any]) -> None:
        """Give `answer`, or why it is none, to the one who asked; raises EngineLost if nobody did."""
        index = answer.get("index", 0 if len(batch) == 1 else None)
        if type(index) is not int or not 0 <= index < len(batch):
            raise EngineLost(f"{self.url} answered index {index!r} of {len(batch)} requests")
        future = batch[index].answer
        if future.done():
            return
        try:
            finish = answer["meta_info"]["finish_reason"]
            if finish is not None and finish["type"] == "abort":
                why = " ".join(str(finish.get("message") or "it does not say why").split())
                raise EngineError(f"{self.url} aborted the request: {why}")
            if finish is not None:
                future.set_result(_completion(answer))
        except EngineError as error:
            future.set_exception(error)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {error}"
            future.set_exception(
                EngineLost(f"{self.url} sent an unusable answer ({reason}): {answer!s:.200}")
            )

    async def _stream(self, path: str, payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if self._session is None:
            raise EngineError("the engine is used outside `async with engine`")
        body = json.dumps(payload, separators=(",", ":")).encode()
        other = b""
        async with self._session.post(self.url + path, data=body, headers=_JSON) as response:
            if response.status != 200:
                text = (await response.text())[:200]
                kind = EngineError if response.status < 500 else EngineLost
                raise kind(f"{response.url} answered {response.status}: {text}")
            async for line in _lines(response.content):
                if not line.startswith(b"data: "):
                    other = other or line.strip()
                elif line.strip() != b"data: [DONE]":
                    yield self._read(line[6:])
        if other:
            raise EngineLost(f"{self.url}{path} answered no event stream but {_shown(other)}")

    def _read(self, line: bytes) -> dict[str, Any]:
        """The object in a line of the stream; raises EngineLost for anything else,
        EngineError for the refusal of a request."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise EngineLost(f"{self.url} sent {_shown(line)}, no JSON object")
        if "error" in found:
            raise EngineError(f"{self.url}: {found['error']}")
        return found


async def _abort(session: aiohttp.ClientSession, url: str, name: str) -> None:
    """Nobody waits for the answer to request `name`; a server that is gone or does not know it, is well."""
    limit = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with session.post(f"{url}/abort_request", json={"rid": name}, timeout=limit):
            pass


_JSON = {"Content-Type": "application/json"}


def _parameters(sampling: Sampling) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "stream_interval": max(2, sampling.max_new_tokens),  # a response is read only when it is complete
    }


def _completion(answer: dict[str, Any]) -> Completion:
    """The completion in a finished answer; raises what reading untyped data does, and ValueError."""
    meta, finish = answer["meta_info"], answer["meta_info"]["finish_reason"]["type"]
    rows = meta.get("output_token_logprobs") or []
    ids = np.array([row[1] for row in rows], dtype=np.int32)
    logprobs = np.array([row[0] for row in rows], dtype=np.float32)
    if answer["output_ids"] != ids.tolist():
        raise ValueError("output ids and log-probs name different tokens")
    if len(ids) == 0:
        raise ValueError("there is no token")
    if not np.isfinite(logprobs).all():
        raise ValueError("a log-prob is not finite")
    if finish not in ("stop", "length"):
        raise ValueError(f"finish_reason {finish!r} is unknown")
    return Completion(ids, logprobs, _versions(meta, len(ids)), finish, int(meta.get("cached_tokens") or 0))


def _versions(meta: dict[str, Any], count: int) -> Int32:
    """The weight version of each of `count` tokens: more than one if the weights changed on the way."""
    whole = {"version": meta["weight_version"], "start": 0, "end": count}
    spans = meta.get("weight_versions") or [whole]
    ends = [0, *(int(span["end"]) for span in spans)]
    if [int(span["start"]) for span in spans] != ends[:-1] or ends[-1] != count:
        raise ValueError(f"the weight versions of {count} tokens are those of {spans}")
    tags = [0 if span["version"] == "default" else int(span["version"]) for span in spans]
    return np.repeat(np.array(tags, dtype=np.int32), np.diff(ends))


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream, however long: an answer is one, of some 46 bytes for each token."""
    parts: list[bytes] = []
    async for part in content.iter_any():
        first, *others = part.split(b"\n")
        parts.append(first)
        for other in others:
            yield b"".join(parts)
            parts = [other]
    yield b"".join(parts)


def _shown(text: bytes) -> str:
    return repr(text[:200].decode("utf-8", "replace").strip())
