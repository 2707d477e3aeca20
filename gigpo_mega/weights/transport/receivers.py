"""The servers that weights go to, as the learner talks to them over HTTP."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

from gigpo_mega.rollout.engines.http import open_direct
from gigpo_mega.weights.transport.base import PushError, check_version

Payload = Mapping[str, Any]
_GRACE = 1.0  # seconds in which the cause of an error may show itself


class _Unreachable(PushError):
    """A server is gone, which may be why others complain."""


class Posted:
    """Requests under way, one to each server."""

    def __init__(self, futures: Sequence[Future[dict[str, Any]]]) -> None:
        self._futures = futures

    def answers(self) -> list[dict[str, Any]]:
        """What the servers answer; raises an error without waiting for those that may never do."""
        wait(self._futures, return_when=FIRST_EXCEPTION)
        if self.error() is not None:
            wait(self._futures, timeout=_GRACE)
        if (error := self.error()) is not None:
            raise error
        return [future.result() for future in self._futures]

    def error(self) -> BaseException | None:
        """Why a request has failed, if one has until now."""
        ended = [future.exception() for future in self._futures if future.done()]
        errors = [error for error in ended if error is not None]
        return next((error for error in errors if isinstance(error, _Unreachable)), *errors[:1] or [None])


class Receivers:
    """The SGLang servers at `urls`; a request goes to all of them at the same time.

    Raises PushError, which names the server, if one cannot be reached, refuses or takes `timeout` seconds.
    """

    def __init__(self, urls: Sequence[str], timeout: float = 600.0) -> None:
        self.urls = [url.rstrip("/") for url in urls]
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(len(self.urls))

    def verify(self, version: int) -> None:
        """Raise PushError unless every server samples with `version` now."""
        for url, found in zip(self.urls, self.get("/model_info"), strict=True):
            check_version(url, found.get("weight_version"), version)

    def get(self, path: str) -> list[dict[str, Any]]:
        """What every server answers."""
        return Posted([self._threads.submit(self._request, url, path, None) for url in self.urls]).answers()

    def ranks(self) -> list[int]:
        """The tensor-parallel ranks of every server."""
        return [int(found.get("tp_size", 1)) for found in self.get("/server_info")]

    def post(self, path: str, payloads: Payload | Sequence[Payload] | None = None) -> list[dict[str, Any]]:
        """Post one payload to all servers, or to each its own; returns what they answer."""
        return self.start(path, payloads).answers()

    def start(self, path: str, payloads: Payload | Sequence[Payload] | None = None) -> Posted:
        """Begin to `post`, without waiting for the answers."""
        each = payloads if isinstance(payloads, Sequence) else [payloads or {}] * len(self.urls)
        posts = zip(self.urls, each, strict=True)
        return Posted([self._threads.submit(self._post, url, path, payload) for url, payload in posts])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block in which the servers compute nothing and hold no keys and values of requests under way.

        If it fails they stand still on: nothing is to be sampled by the weights that they may have then.
        """
        self.post("/pause_generation", {"mode": "retract"})
        yield
        self.post("/continue_generation")

    @contextmanager
    def session(self) -> Iterator[None]:
        """A block in which the servers take updates by bucket; it ends there whatever happens inside."""
        try:
            self._begin()
            yield
        except BaseException:
            with contextlib.suppress(PushError):  # the first error is the one to tell
                self.post("/end_weight_update")
            raise
        self.post("/end_weight_update")

    def _begin(self) -> None:
        """Open the servers' sessions, anew where a learner that was killed in a push has left one open."""
        try:
            self.post("/begin_weight_update")
        except PushError as error:
            if "already open" not in str(error):
                raise
            with contextlib.suppress(PushError):  # where none was open
                self.post("/end_weight_update")
            self.post("/begin_weight_update")

    def _post(self, url: str, path: str, payload: Payload) -> dict[str, Any]:
        answer = self._request(url, path, payload)
        if not answer.get("success") and answer.get("status") != "ok":
            raise PushError(f"{url}{path}: {answer.get('message')}")
        return answer

    def _request(self, url: str, path: str, payload: Payload | None) -> dict[str, Any]:
        body = None if payload is None else json.dumps(payload).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url + path, data=body, headers=headers)
        try:
            with open_direct(request, timeout=self._timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            reason = error.read()[:300].decode("utf-8", "replace")
            raise PushError(f"{url}{path} answered {error.code}: {reason}") from None
        except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
            raise _Unreachable(f"{url}{path}: {error}") from None

