"""The queries of the expert for the offline questions, with BM25 in this process.

A step is a search over the whole corpus, or an answer. The environments of a process share the index;
`memory_kib_per_environment` does not include it. The reference environment cannot be measured in the same
run: it has no package of its own.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from envs.base import Task
from envs.search.environment import SearchEnvironment
from envs.search.questions import Question
from envs.search.retrieval import open_corpus
from envs.search.sources import task_source
from gigpo_mega.telemetry.provenance import provenance
from tools.bench.environments.measure import memory_per_environment, play, seconds

EPISODES = 500


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Time resets and steps of EPISODES episodes, `repeats` times."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "offline"
        tasks = task_source(str(folder), offline=True).tasks("test")
        tasks = [tasks[i * len(tasks) // EPISODES] for i in range(EPISODES)]
        corpus = str(folder / "corpus.jsonl")
        environment = SearchEnvironment(corpus=corpus)
        index = seconds(lambda: environment.retriever)
        episodes = [(task, _actions(task)) for task in tasks]
        runs = [play(environment, episodes) for _ in range(options.repeats)]
        memory = memory_per_environment(lambda place: _started(corpus, tasks[place]))
    return {
        "env": "search",
        **provenance("bm25s", "numpy"),
        "passages": len(open_corpus(corpus).passages),
        "index_s": round(index, 2),
        "repeats": options.repeats,  # medians of them
        "steps": sum(runs[0].counts),
        "steps_per_second": round(median(run.steps_per_second for run in runs)),
        "resets_per_second": round(median(run.resets_per_second for run in runs)),
        "memory_kib_per_environment": memory,
        "memory_mib_of_a_process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _actions(task: Task) -> list[str]:
    question = Question.from_json(task.source)
    return [
        *(f"<search>{hop.query}</search>" for hop in question.hops),
        f"<answer>{question.golden[0]}</answer>",
    ]


def _started(corpus: str, task: Task) -> SearchEnvironment:
    environment = SearchEnvironment(corpus=corpus)
    environment.reset(task)
    environment.step(_actions(task)[0])
    return environment


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The result as text."""
    yield (f"{result['steps_per_second']:,} steps/s  {result['resets_per_second']:,} resets/s  "
           f"{result['memory_kib_per_environment']} KiB per environment")  # fmt: skip
