"""The HTTP messages to and from a retriever, in Search-R1's and verl-agent's formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envs.search.retrieval import Hit, Passage


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of a server."""

    body: int = 1 << 20  # bytes of a request
    queries: int = 256  # of a request
    characters: int = 4096  # of a query
    topk: int = 100
    queue: int = 4096  # queries waiting
    batch: int = 64  # queries searched together
    seconds: float = 20.0  # a request may take


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has been checked."""

    queries: tuple[str, ...]
    topk: int
    scores: bool


class Refused(Exception):
    """A request that is answered with `status` and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_request(body: bytes, limits: ServerLimits) -> Request:
    """The request in `body`, in either wire format; raises Refused if it is not one."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict) or ("queries" in asked) == ("query" in asked):
        raise Refused(400, 'send {"queries": ["..", ..]} or {"query": ".."}')
    queries = asked["queries"] if "queries" in asked else [asked["query"]]
    if not isinstance(queries, list) or not queries:
        raise Refused(400, "queries: need a list with at least one query")
    if len(queries) > limits.queries:
        raise Refused(413, f"queries: {len(queries)} exceed {limits.queries}; send several requests")
    for query in queries:
        if not isinstance(query, str):
            raise Refused(400, f"query: need text, got {type(query).__name__}")
        if not query.strip():
            raise Refused(400, "query: is empty")
        if len(query) > limits.characters:
            raise Refused(413, f"query: {len(query)} characters exceed {limits.characters}")
    sendable = tuple(query.encode(errors="replace").decode() for query in queries)  # no lone surrogates
    topk = asked.get("topk")
    topk = 3 if topk is None else topk
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= limits.topk:
        raise Refused(400, f"topk: {str(topk)[:40]} is not in 1..{limits.topk}")
    return Request(sendable, topk, bool(asked.get("return_scores", "query" in asked)))


def result_row(hit: Hit, scores: bool) -> dict[str, Any]:
    """One result as it is sent: {document, score}, or the document itself."""
    document = {"id": hit.passage.id, "contents": hit.passage.contents}
    return {"document": document, "score": hit.score} if scores else document


def read_hit(item: Mapping[str, Any]) -> Hit:
    """The hit in a result of this or another retriever; raises KeyError or TypeError for other content."""
    document = item.get("document", item)
    contents = document["contents"] if "contents" in document else f"{document['title']}\n{document['text']}"
    return Hit(Passage(str(document.get("id", "")), str(contents)), float(item.get("score", 0.0)))
