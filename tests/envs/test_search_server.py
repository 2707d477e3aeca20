"""The retriever over real HTTP: both wire formats, refusals, overload, retries, 200 clients at once."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
from aiohttp import web

from envs.base import EnvError, Task
from envs.search.client import RemoteRetriever, RetrieverError
from envs.search.environment import SearchEnvironment
from envs.search.questions import Question
from envs.search.retrieval import Bm25, Hit, Passage
from envs.search.server import make_app
from envs.search.wire import ServerLimits
from tests.helpers import wait_for

PASSAGES = [Passage(str(i), f"Town {i}\nIt has {i * i} houses, a café and the river Foo") for i in range(50)]


@contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """The address of `app`, served from a thread with a loop of its own."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    address: list[str] = []

    async def serve() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        address.append(f"http://{host}:{port}")
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_app(Bm25(PASSAGES), {"retriever": "bm25", "passages": len(PASSAGES)})) as address:
        yield address


def post(url: str, body: bytes | object, path: str = "/retrieve") -> tuple[int, Any, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
    response = connection.getresponse()
    text = response.read()
    connection.close()
    is_json = response.headers.get_content_type() == "application/json"
    return response.status, json.loads(text) if is_json else text, response.headers


def test_search_r1s_format_is_answered_per_query(url: str) -> None:
    status, answer, _ = post(url, {"queries": ["Town 7", "Town 3"], "topk": 2, "return_scores": True})
    assert status == 200
    (first, _), (second, _) = answer["result"]
    assert first["document"] == {"id": "7", "contents": PASSAGES[7].contents}
    assert second["document"]["id"] == "3"
    assert first["score"] > 0
    _, answer, _ = post(url, {"queries": ["Town 7"], "topk": 1})
    assert answer == {"result": [[{"id": "7", "contents": PASSAGES[7].contents}]]}


def test_verl_agents_format_is_answered_with_three_hits(url: str) -> None:
    status, answer, _ = post(url, {"query": "Town 7"})
    assert status == 200
    assert [len(hits) for hits in answer["result"]] == [3]
    assert answer["result"][0][0]["document"]["contents"] == PASSAGES[7].contents


def health(url: str) -> dict[str, Any]:
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)) as connection:
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())


def test_health_reports_what_is_served(url: str) -> None:
    assert health(url) == {"status": "ok", "waiting": 0, "retriever": "bm25", "passages": 50}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        ([], 400, 'send {"queries"'),
        ({}, 400, 'send {"queries"'),
        ({"query": "a", "queries": ["a"]}, 400, 'send {"queries"'),
        ({"queries": []}, 400, "at least one query"),
        ({"queries": "a"}, 400, "at least one query"),
        ({"queries": ["a"] * 257}, 413, "257 exceed 256"),
        ({"queries": ["a", 1]}, 400, "need text, got int"),
        ({"query": None}, 400, "need text, got NoneType"),
        ({"query": " \n"}, 400, "query: is empty"),
        ({"query": "a" * 4097}, 413, "4097 characters exceed 4096"),
        ({"query": "a", "topk": 0}, 400, "topk: 0 is not in 1..100"),
        ({"query": "a", "topk": 10**9}, 400, "topk: 1000000000 is not in 1..100"),
        ({"query": "a", "topk": "3"}, 400, "topk: 3 is not in"),
        ({"query": "a", "topk": True}, 400, "topk: True is not in"),
    ],
)
def test_malformed_requests_are_refused(url: str, body: object, status: int, message: str) -> None:
    got, answer, _ = post(url, body)
    assert got == status
    assert message in answer["error"]


def test_a_huge_body_and_an_unknown_path(url: str) -> None:
    assert post(url, {"query": "a" * (2 << 20)})[0] == 413
    assert post(url, {"query": "a"}, path="/search")[0] == 404


def test_unusual_text_is_searched_without_an_error(url: str) -> None:
    for query in ("\ud800", "\0", "看" * 4096, "<answer>"):
        status, answer, _ = post(url, {"query": query})
        assert (status, answer) == (200, {"result": [[]]})


@pytest.mark.parametrize("wire", ["queries", "query"])
def test_the_client_finds_what_the_retriever_finds(url: str, wire: Any) -> None:
    remote = RemoteRetriever(f"{url}/retrieve", wire=wire)
    queries = ["Town 7", "café 16", "nowhere", "Foo"]
    assert remote.search(queries, 3) == Bm25(PASSAGES).search(queries, 3)
    remote.close()


def test_an_episode_is_played_with_a_remote_retriever(url: str) -> None:
    environment = SearchEnvironment(retriever={"url": f"{url}/retrieve"}, topk=1)
    environment.reset(Task("a", "b", Question("How many houses has Town 7?", ("49",)).to_json()))
    found = environment.step("<search>Town 7</search>").observation.text
    assert found == f"<information>Doc 1: {PASSAGES[7].contents}\n</information>"
    assert environment.step("<answer>49</answer>").success


def test_two_hundred_clients_lose_nothing(url: str) -> None:
    expected = Bm25(PASSAGES).search([f"Town {i}" for i in range(50)], 2)

    def ask(client: int) -> bool:
        remote = RemoteRetriever(f"{url}/retrieve", retries=0)
        towns = [n % 50 for n in range(client, client + 3)]
        found = [remote.search([f"Town {n}"], 2)[0] for n in towns]
        remote.close()
        return found == [expected[n] for n in towns]

    with ThreadPoolExecutor(200) as clients:
        assert sum(clients.map(ask, range(200))) == 200


class FakeSlow:
    """Searches when it is let, and counts what it is asked in one go."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.batches: list[int] = []

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        self.batches.append(len(queries))
        assert self.let.wait(60)
        return [[Hit(Passage(query, query), 1.0)] * topk for query in queries]


def ask_at_once(
    slow: FakeSlow, limits: ServerLimits, requests: int, waiting: int
) -> list[tuple[int, Any, Any]]:
    """The answers to `requests`, and to a last one; until `waiting` of them wait, nothing is searched."""
    with serving(make_app(slow, {}, limits)) as address, ThreadPoolExecutor(requests) as clients:
        asked = [{"query": str(i), "topk": 1 + i % 3} for i in range(requests + 1)]
        answers = [clients.submit(post, address, body) for body in asked[:-1]]
        wait_for(lambda: sum(answer.done() for answer in answers) == requests - waiting)
        wait_for(lambda: health(address)["waiting"] == waiting)
        slow.let.set()
        return [*(answer.result() for answer in answers), post(address, asked[-1])]


def test_waiting_queries_are_searched_together() -> None:
    slow = FakeSlow()
    answers = ask_at_once(slow, ServerLimits(batch=8), 17, waiting=17)
    for i, (status, answer, _) in enumerate(answers):
        assert status == 200
        assert [hit["document"]["contents"] for hit in answer["result"][0]] == [str(i)] * (1 + i % 3)
    assert sum(slow.batches) == 18
    assert len(slow.batches) == 4  # what had come first, the others in two, and the last one
    assert max(slow.batches) <= 8


def test_a_full_queue_is_answered_with_retry_after() -> None:
    answers = ask_at_once(FakeSlow(), ServerLimits(queue=4), 12, waiting=4)
    refused = [(answer, headers) for status, answer, headers in answers if status == 429]
    assert sorted(status for status, _, _ in answers) == [200] * 5 + [429] * 8
    assert all("4 queries are waiting" in answer["error"] and headers["Retry-After"] == "1"
               for answer, headers in refused)


def test_a_request_that_waits_too_long_is_answered_with_503() -> None:
    slow = FakeSlow()
    *late, last = ask_at_once(slow, ServerLimits(batch=1, seconds=2.0), 3, waiting=0)
    assert [status for status, _, _ in late] == [503] * 3
    assert all("not searched within 2.0 s" in answer["error"] for _, answer, _ in late)
    assert last[0] == 200
    assert slow.batches == [1, 1]  # nobody waited any more for the other two


def test_a_failing_retriever_fails_the_request_not_the_server() -> None:
    class FakeBroken:
        def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
            if queries == ["bad"]:
                raise RuntimeError("index lost")
            return [[] for _ in queries]

    with serving(make_app(FakeBroken(), {})) as address:
        assert post(address, {"query": "bad"})[0] == 500
        assert post(address, {"query": "good"})[0] == 200


def scripted(*answers: tuple[int, object, dict[str, str]]) -> tuple[web.Application, list[float]]:
    """A server that gives these answers, the last one again and again, and notes when it was asked."""
    asked: list[float] = []

    async def retrieve(_: web.Request) -> web.Response:
        status, body, headers = answers[min(len(asked), len(answers) - 1)]
        asked.append(time.monotonic())
        return web.json_response(body, status=status, headers=headers)

    app = web.Application()
    app.router.add_post("/retrieve", retrieve)
    return app, asked


GOOD = (200, {"result": [[{"document": {"contents": "A\nb"}, "score": 2}]]}, {})


def test_the_client_retries_after_errors_and_waits_as_asked() -> None:
    app, asked = scripted((503, {}, {}), (429, {}, {"Retry-After": "1"}), (500, {}, {}), GOOD)
    with serving(app) as address:
        found = RemoteRetriever(f"{address}/retrieve", pause=0.01).search(["a"], 1)
    assert found == [[Hit(Passage("", "A\nb"), 2.0)]]
    assert len(asked) == 4
    assert asked[2] - asked[1] >= 0.99  # as Retry-After said


@pytest.mark.parametrize(
    ("answer", "times", "message"),
    [
        ((503, {"error": "busy"}, {}), 3, "503 .*busy"),
        ((400, {"error": "no"}, {}), 1, "400 .*no"),
        ((200, {"results": []}, {}), 1, "unreadable answer"),
        ((200, {"result": [[{"score": 1}]]}, {}), 1, "unreadable answer"),
        ((200, {"result": []}, {}), 1, "0 results for 1 queries"),
    ],
)
def test_the_client_gives_up_after_its_retries(answer: Any, times: int, message: str) -> None:
    app, asked = scripted(answer)
    with serving(app) as address, pytest.raises(RetrieverError, match=message):
        RemoteRetriever(f"{address}/retrieve", pause=0.01, retries=2).search(["a"], 1)
    assert len(asked) == times


def test_the_pauses_of_a_client_that_gives_up_take_91_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("envs.search.client.time.sleep", pauses.append)
    with pytest.raises(RetrieverError):
        RemoteRetriever("http://127.0.0.1:9/retrieve").search(["a"], 1)
    assert sum(pauses) == 91.5  # seconds; docs/environments/search.md


def test_a_lost_server_ends_the_episode_with_one_line() -> None:
    nowhere = {"url": "http://127.0.0.1:9/retrieve", "retries": 1, "pause": 0.01}
    environment = SearchEnvironment(retriever=nowhere)
    environment.reset(Task("a", "b", Question("a?", ("a",)).to_json()))
    with pytest.raises(EnvError, match=r"http://127\.0\.0\.1:9/retrieve.*is it running\?"):
        environment.step("<search>a</search>")


@contextmanager
def garbled(*answers: bytes) -> Iterator[tuple[str, list[int]]]:
    """The address of a server that sends these bytes, the last ones again and again, and its connections."""
    asked: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(answers[min(len(asked), len(answers) - 1)])
                        asked.append(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/retrieve", asked
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


FOUND = json.dumps(GOOD[1]).encode()
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(FOUND), FOUND)
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + FOUND
BROKEN = {
    "IncompleteRead": CUT,
    "IncompleteRead of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "BadStatusLine": b"garbage\r\n\r\n",
    "RemoteDisconnected": b"",
    "LineTooLong": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    "UnknownProtocol": b"HTTP/7.0 200 OK\r\n\r\n",
    "HTTPException": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_answer_that_is_no_http_is_asked_for_again(kind: str) -> None:
    with garbled(BROKEN[kind], WHOLE) as (address, asked):
        found = RemoteRetriever(address, pause=0.01).search(["a"], 1)
    assert found == [[Hit(Passage("", "A\nb"), 2.0)]]
    assert len(asked) == 2


@pytest.mark.parametrize("kind", BROKEN)
def test_a_server_that_never_speaks_http_ends_the_episode_with_its_url(kind: str) -> None:
    with garbled(BROKEN[kind]) as (address, asked):
        environment = SearchEnvironment(retriever={"url": address, "retries": 1, "pause": 0.01})
        environment.reset(Task("a", "b", Question("a?", ("a",)).to_json()))
        with pytest.raises(EnvError, match=rf"^retriever {address}: {kind.split()[0]}.*is it running\?"):
            environment.step("<search>a</search>")
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "localhost:8000/retrieve"}, "url: 'localhost:8000/retrieve' is no http or https address"),
        ({"url": "127.0.0.1:8000"}, "url: '127.0.0.1:8000' is no http or https address"),
        ({"url": "//host/retrieve"}, "url: '//host/retrieve' is no http or https address"),
        ({"url": "ftp://host/x"}, "url: 'ftp://host/x' is no http or https address"),
        ({"url": "http://host:eight/x"}, "url: 'http://host:eight/x' is no http or https address"),
        ({"url": "http://[::1/x"}, r"url: 'http://\[::1/x' is no http or https address"),
        ({"url": "http://a..b/x"}, "url: 'http://a..b/x' is no http or https address"),
        ({"url": 3}, "environment search: environment.options.retriever.url is 3; it must be str"),
        ({}, "environment search: environment.options.retriever.url is missing; it must be str"),
        ({"url": "http://x", "retires": 3}, r"unknown key .*\.retriever\.retires; did you mean retries\?"),
        ({"url": "http://x", "retries": "3"}, "retriever.retries is '3'; it must be int"),
    ],
)
def test_a_retriever_that_cannot_be_is_refused_when_the_environment_is_made(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(EnvError, match=said):
        SearchEnvironment(retriever=options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RemoteRetriever("ftp://x"),
        lambda: RemoteRetriever("nowhere"),
        lambda: RemoteRetriever("http://x", wire="xml"),  # pyright: ignore[reportArgumentType]
        lambda: RemoteRetriever("http://x", timeout=0),
    ],
)
def test_client_options_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(EnvError, match=r"environment\.options\.retriever"):
        make()
