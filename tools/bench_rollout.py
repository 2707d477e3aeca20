"""Measure what a step of an episode costs the process that plays it: chat prompts, client, bookkeeping.

    python tools/bench_rollout.py --save docs/benchmarks/bench_rollout.json

Real environments in another process, and a server that answers at once in a third. Times are CPU seconds of
the playing process, so that other programs on the machine do not count.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from gigpo_mega.arguments import COUNT
from gigpo_mega.program import run_main
from tools.records import parser, publish


def main() -> None:
    """Print what is measured, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--model", type=Path, metavar="DIR", help="tokenizer and chat template")
    options.add_argument("--groups", type=COUNT, default=32, help="of 8 episodes")
    options.add_argument("--concurrency", type=COUNT, default=128)
    options.add_argument("--repeats", type=COUNT, default=5)
    given = options.parse_args()
    from tools.bench.harness import bench
    from tools.smollm2 import find_gguf, write_tokenizer

    with TemporaryDirectory() as folder:
        model = given.model or Path(folder) / "model"
        if given.model is None:
            write_tokenizer(find_gguf(), model)
        record = bench(model, Path(folder) / "games", given.groups, given.concurrency, given.repeats)
    print(
        f"{record['steps_per_second']:.0f} steps per second of one core, prompts of "
        f"{record['prompt_tokens']:.0f} tokens; with rollout workers the leader spends "
        f"{record['workers']['leader_ms']:.3f} ms a step, a worker {record['workers']['workers_ms']:.3f} ms"
    )
    publish(record, given)


if __name__ == "__main__":
    run_main(main)
