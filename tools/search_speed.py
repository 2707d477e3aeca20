"""The search QA part of bench_envs.py: the expert's look-ups on the offline questions, BM25 in this process.

A step is a search over the whole corpus or an answer. The index is shared by the environments of a process;
`memory_kib_per_environment` is what an environment holds beside it. Times are CPU seconds of this process.
The reference's environment has no package of its own to be measured beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from envs.base import Task
from envs.search.environment import SearchEnvironment
from envs.search.questions import Question
from envs.search.retrieval import open_corpus
from envs.search.sources import task_source
from tools import bench_envs

EPISODES = 500


def bench(repeats: int) -> dict[str, Any]:
    """Times resets and steps of EPISODES episodes, `repeats` times."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "offline"
        tasks = task_source(str(folder), offline=True).tasks("test")
        tasks = [tasks[i * len(tasks) // EPISODES] for i in range(EPISODES)]
        corpus = str(folder / "corpus.jsonl")
        environment = SearchEnvironment(corpus=corpus)
        index = bench_envs._seconds(lambda: environment.retriever)
        runs = [_play(environment, tasks) for _ in range(repeats)]
        memory = bench_envs.memory_per_environment(lambda place: _started(corpus, tasks[place]))
    return {
        "env": "search",
        "commit": bench_envs._commit(),
        "device": f"{platform.machine()}, one core of {bench_envs._cores()}",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {name: bench_envs._version(name) for name in ("bm25s", "numpy")},
        "passages": len(open_corpus(corpus).passages),
        "index_s": round(index, 2),
        "repeats": repeats,  # medians of them
        "steps": runs[0][2],
        "steps_per_second": round(median(steps / seconds for _, seconds, steps in runs)),
        "resets_per_second": round(median(EPISODES / seconds for seconds, _, _ in runs)),
        "memory_kib_per_environment": memory,
        "memory_mib_of_a_process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _actions(task: Task) -> list[str]:
    question = Question.from_json(task.source)
    return [
        *(f"<search>{hop.query}</search>" for hop in question.hops),
        f"<answer>{question.golden[0]}</answer>",
    ]


def _play(environment: SearchEnvironment, tasks: list[Task]) -> tuple[float, float, int]:
    """Seconds of the resets, seconds of the steps, and how many those were."""
    said = [_actions(task) for task in tasks]
    resets = steps = 0.0
    for task, actions in zip(tasks, said, strict=True):
        start = time.process_time()
        environment.reset(task)
        middle = time.process_time()
        for action in actions:
            environment.step(action)
        resets += middle - start
        steps += time.process_time() - middle
    return resets, steps, sum(map(len, said))


def _started(corpus: str, task: Task) -> SearchEnvironment:
    environment = SearchEnvironment(corpus=corpus)
    environment.reset(task)
    environment.step(_actions(task)[0])
    return environment


def main(options: argparse.Namespace) -> None:
    """Measures as bench_envs was asked to, and prints."""
    result = bench(options.repeats)
    print(f"{result['steps_per_second']:,} steps/s  {result['resets_per_second']:,} resets/s  "
          f"{result['memory_kib_per_environment']} KiB per environment")  # fmt: skip
    if options.json:
        print(json.dumps(result))
