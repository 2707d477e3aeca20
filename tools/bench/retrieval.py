"""Recall of the retrievers of search QA, and latency of the retrieval server under load."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import aiohttp

from envs.search.dense import Dense, Encoder
from envs.search.questions import Question
from envs.search.retrieval import Bm25, Passage, Retriever, open_corpus, read_corpus
from envs.search.sources import task_source
from gigpo_mega.errors import UserError
from gigpo_mega.telemetry.provenance import provenance
from tools.bench.environments.measure import seconds

ROOT = Path(__file__).resolve().parents[2]
TOPK = 3


def recall(retriever: Retriever, questions: Sequence[Question]) -> dict[str, Any]:
    """Recall@3 and number of queries, by kind of question and hop."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        for number, hop in enumerate(question.hops, start=1):
            hits[f"{question.kind}, hop {number}"].append(_finds(retriever, hop.query, hop.title))
        if len(question.hops) == 1:
            found = _finds(retriever, question.text, question.hops[0].title)
            hits[f"{question.kind}, the question itself"].append(found)
    return {name: {"recall@3": round(sum(found) / len(found), 4), "queries": len(found)}
            for name, found in sorted(hits.items())}  # fmt: skip


def _finds(retriever: Retriever, query: str, title: str) -> bool:
    return title in {hit.passage.title for hit in retriever.search([query], TOPK)[0]}


def bench_dense(model: Path, questions: int, distractors: int, seed: int) -> dict[str, Any]:
    """Recall@3 of the model in the folder `model` and of BM25, over the same part of the corpus."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "offline"
        asked = [
            Question.from_json(task.source) for task in task_source(str(folder), offline=True).tasks("test")
        ]
        passages, rng = read_corpus(folder / "corpus.jsonl"), Random(seed)
    drawn = rng.sample(asked, questions)
    needed = {hop.title for question in drawn for hop in question.hops}
    gold = [passage for passage in passages if passage.title in needed]
    others = rng.sample([passage for passage in passages if passage.title not in needed], distractors)
    chosen: list[Passage] = [*gold, *others]
    encoder = Encoder(model)
    start = time.process_time()
    vectors = encoder.encode([passage.contents for passage in chosen])
    spent = time.process_time() - start
    return {
        "env": "search",
        "what": "recall@3 over a part of the corpus: all needed passages, and others drawn at random",
        **provenance("numpy"),
        "model": model.parent.name,
        "questions": questions,
        "passages": {"needed": len(gold), "others": distractors, "corpus": len(passages)},
        "embedding_cpu_ms_per_passage": round(1e3 * spent / len(chosen), 1),
        "dense": recall(Dense(chosen, vectors, encoder), drawn),
        "bm25": recall(Bm25(chosen), drawn),
    }


@contextlib.contextmanager
def serving(corpus: Path, port: int) -> Iterator[str]:
    """Address of a server process that answers /health; raises UserError if it ends instead."""
    command = [sys.executable, "-m", "envs.search.server", "--corpus", str(corpus), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(0.5)
        if process.poll() is not None:
            raise UserError(f"the server ended with status {process.returncode}; is port {port} free?")
        yield address
    finally:
        process.terminate()
        process.wait(10)


async def load(address: str, queries: Sequence[str], clients: int, requests: int) -> dict[str, Any]:
    """Latencies and lost requests of `clients` concurrent clients that send `requests` each."""
    seconds: list[float] = []
    lost: dict[str, int] = defaultdict(int)

    async def client(number: int) -> None:
        rng = Random(number)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            for _ in range(requests):
                body = {"queries": [rng.choice(queries)], "topk": TOPK, "return_scores": True}
                start = time.monotonic()
                try:
                    async with session.post(f"{address}/retrieve", json=body) as response:
                        good = len((await response.json())["result"]) == 1
                        lost[str(response.status)] += not (good and response.status == 200)
                except (aiohttp.ClientError, TimeoutError, KeyError) as error:
                    lost[type(error).__name__] += 1
                seconds.append(time.monotonic() - start)

    start = time.monotonic()
    await asyncio.gather(*map(client, range(clients)))
    took = time.monotonic() - start
    hundredths = quantiles(seconds, n=100)
    return {
        "clients": clients,
        "requests": len(seconds),
        "lost": sum(lost.values()),
        "requests_per_second": round(len(seconds) / took),
        "latency_ms": {name: round(1e3 * value, 1) for name, value in
                       (("median", median(seconds)), ("p90", hundredths[89]), ("p99", hundredths[98]),
                        ("max", max(seconds)))},
    }  # fmt: skip


def bench(clients: int, requests: int, port: int) -> dict[str, Any]:
    """The record: recall of BM25, and its server under load."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "offline"
        built = seconds(lambda: task_source(str(folder), offline=True))
        corpus, tasks = folder / "corpus.jsonl", task_source(str(folder)).tasks("test")
        questions = [Question.from_json(task.source) for task in tasks]
        start = time.process_time()
        retriever = open_corpus(str(corpus))
        indexed = time.process_time() - start
        queries = [hop.query for question in questions for hop in question.hops]
        with serving(corpus, port) as address:
            served = asyncio.run(load(address, queries, clients, requests))
        return {
            "env": "search",
            **provenance("bm25s", "numpy", "aiohttp"),  # latencies are wall-clock: see load_average
            "passages": len(retriever.passages),
            "questions": {split: len(task_source(str(folder)).tasks(split)) for split in ("train", "test")},
            "build_cpu_seconds": round(built, 1),
            "index_cpu_seconds": round(indexed, 1),
            "recall": recall(retriever, questions),
            "server": served,
        }
