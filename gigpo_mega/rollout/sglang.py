"""The asynchronous client of an SGLang server: requests made at about the same time are one batched POST."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import numpy as np

from gigpo_mega.rollout.engine import Completion, EngineError, Sampling

_Pending = tuple[list[int], dict[str, Any], "asyncio.Future[Completion]"]


class SGLangEngine:
    """Talks to the server at `url`.

    A request waits up to `window` seconds for company, and the batch goes as one streaming POST whose answers
    come back one by one as they finish: fewer requests for the server to parse, and still no lock step.
    """

    def __init__(self, url: str, *, version: int = 0, timeout: float = 600.0, window: float = 0.002) -> None:
        self.url = url.rstrip("/")
        self._version = version
        self._timeout = timeout
        self._window = window
        self._session: aiohttp.ClientSession | None = None
        self._pending: list[_Pending] = []
        self._posts: set[asyncio.Task[None]] = set()

    @property
    def version(self) -> int:
        return self._version

    @version.setter
    def version(self, value: int) -> None:
        self._version = value

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            # A kept connection may be closed by the server in the moment it is used again.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            read_bufsize=1 << 20,
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

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Sample one response; raises EngineError where the server fails, refuses or is too slow."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completion] = loop.create_future()
        self._pending.append((list(prompt_ids), _parameters(sampling), future))
        if len(self._pending) == 1:
            loop.call_later(self._window, self._flush)
        return await future

    async def abort(self) -> None:
        """Make every request in flight finish now, with finish "abort"."""
        await self._post("/abort_request", {"abort_all": True})

    def _flush(self) -> None:
        batch, self._pending = self._pending, []
        if batch:
            post = asyncio.get_running_loop().create_task(self._send(batch))
            self._posts.add(post)
            post.add_done_callback(self._posts.discard)

    async def _send(self, batch: list[_Pending]) -> None:
        payload = {
            "input_ids": [ids for ids, _, _ in batch],
            "sampling_params": [parameters for _, parameters, _ in batch],
            "return_logprob": True,
            "stream": True,
        }
        try:
            async for answer in self._stream("/generate", payload):
                future = batch[answer.get("index", 0)][2]
                if answer["meta_info"]["finish_reason"] is not None and not future.done():
                    future.set_result(_completion(answer))
            raise EngineError("the server closed the stream before all answers had come")
        except (aiohttp.ClientError, TimeoutError, EngineError, KeyError, ValueError) as error:
            reason = error if isinstance(error, EngineError) else EngineError(f"{self.url}: {error!r}")
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(reason)

    async def _stream(self, path: str, payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        session = self._require_session()
        body = _encoded(payload)
        async with session.post(self.url + path, data=body, headers=_JSON) as response:
            if response.status != 200:
                raise await _refusal(response)
            async for line in response.content:
                if line.startswith(b"data: {"):
                    answer = json.loads(line[6:])
                    if "error" in answer:
                        raise EngineError(f"{self.url}{path}: {answer['error']}")
                    yield answer

    async def _post(self, path: str, payload: dict[str, Any]) -> None:
        session = self._require_session()
        async with session.post(self.url + path, data=_encoded(payload), headers=_JSON) as response:
            if response.status != 200:
                raise await _refusal(response)

    def _require_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineError("the engine is used outside `async with engine`")
        return self._session


_JSON = {"Content-Type": "application/json"}


def _encoded(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()


async def _refusal(response: aiohttp.ClientResponse) -> EngineError:
    return EngineError(f"{response.url} answered {response.status}: {(await response.text())[:200]}")


def _parameters(sampling: Sampling) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_token_ids),
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "stream_interval": max(2, sampling.max_new_tokens),  # nobody reads a response before it is complete
    }


def _completion(answer: dict[str, Any]) -> Completion:
    meta = answer["meta_info"]
    rows = meta.get("output_token_logprobs") or []  # absent where it was aborted before its first token
    ids = np.array([row[1] for row in rows], dtype=np.int32)
    if answer.get("output_ids", []) != ids.tolist():
        raise EngineError("the server's output ids and log-probs name different tokens")
    return Completion(
        response_ids=ids,
        logprobs=np.array([row[0] for row in rows], dtype=np.float32),
        version=_version(meta),
        finish=meta["finish_reason"]["type"],
        cached_tokens=meta.get("cached_tokens", 0),
    )


def _version(meta: dict[str, Any]) -> int:
    spans = meta.get("weight_versions") or [{"version": meta["weight_version"]}]
    versions = {span["version"] for span in spans}
    if len(versions) != 1:
        raise EngineError(f"a response was sampled by several weight versions: {sorted(versions)}")
    tag = versions.pop()
    return 0 if tag == "default" else int(tag)
