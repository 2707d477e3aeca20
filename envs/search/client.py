"""A client of a remote retriever over HTTP, in Search-R1's or verl-agent's format, with retries."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from envs.base import EnvError
from envs.search.retrieval import Hit
from envs.search.wire import read_hit

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 30.0  # seconds


class RetrieverError(RuntimeError):
    """The retriever could not be reached, refused a request or sent an unreadable answer."""


class RemoteRetriever:
    """Sends queries to `url`; keeps one connection open.

    `wire` queries is Search-R1's format, one request for all queries; query is verl-agent's, one request per
    query. A request may take `timeout` seconds and is repeated up to `retries` times after a lost connection,
    a timeout or a 408, 425, 429 or 5xx, with pauses that double from `pause` seconds or as Retry-After says.
    Not thread-safe. Raises EnvError for arguments that cannot be used.
    """

    def __init__(
        self,
        url: str,
        wire: Literal["queries", "query"] = "queries",
        timeout: float = 30.0,
        retries: int = 8,
        pause: float = 0.5,
    ) -> None:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("idna").decode(), parts.port
            if not host or parts.scheme not in ("http", "https"):
                raise ValueError
        except ValueError:  # also of a port that is no number, and of a host with an empty part
            raise EnvError(
                f"environment.options.retriever.url: {url!r} is no http or https address"
            ) from None
        if wire not in ("queries", "query"):
            raise EnvError(
                f"environment.options.retriever.wire: unknown {wire!r}; known: queries, query"
            )
        if timeout <= 0 or retries < 0 or pause < 0:
            raise EnvError(
                f"environment.options.retriever: timeout {timeout} must be > 0, retries {retries} and pause "
                f"{pause} >= 0"
            )
        self.url, self.wire, self.timeout, self.retries, self.pause = url, wire, timeout, retries, pause
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=timeout)
        self._path = (parts.path or "/retrieve") + (f"?{parts.query}" if parts.query else "")

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The hits for each query; raises RetrieverError when all retries have failed."""
        options = {"topk": topk, "return_scores": True}
        if self.wire == "queries":
            found = self._ask({"queries": list(queries), **options})
        else:
            found = [hits for query in queries for hits in self._ask({"query": query, **options})]
        if len(found) != len(queries):
            raise RetrieverError(f"retriever {self.url}: {len(found)} results for {len(queries)} queries")
        return found

    def close(self) -> None:
        """Closes the connection; the next search opens it again."""
        self._connection.close()

    def _ask(self, request: Mapping[str, Any]) -> list[list[Hit]]:
        body = json.dumps(request).encode()
        reason = ""
        for attempt in range(self.retries + 1):
            pause = min(self.pause * 2**attempt, _LONGEST_PAUSE)
            try:
                status, asked, answer = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                reason = repr(error)
            else:
                if status == 200:
                    try:
                        return [[read_hit(item) for item in hits] for hits in json.loads(answer)["result"]]
                    except (ValueError, KeyError, TypeError, AttributeError) as error:
                        raise RetrieverError(f"retriever {self.url}: unreadable answer: {error!r}") from None
                reason = f"{status} {answer[:200].decode(errors='replace')}"
                if status not in _RETRIED:
                    break
                pause = asked if asked is not None else pause
            if attempt < self.retries:
                time.sleep(pause)
        raise RetrieverError(f"retriever {self.url}: {reason}; is it running? (python -m envs.search.server)")

    def _post(self, body: bytes) -> tuple[int, float | None, bytes]:
        """The status, the seconds in Retry-After, and the body."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self._connection.request("POST", self._path, body, headers)
        response = self._connection.getresponse()
        asked = response.getheader("Retry-After", "")
        seconds = min(float(asked), _LONGEST_PAUSE) if asked.isdigit() else None
        return response.status, seconds, response.read()
