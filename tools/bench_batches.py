"""Padding, balance and speed of micro-batches, packed and padded.

    python tools/bench_batches.py --save docs/benchmarks/bench_batches.json

The rows are as uneven as those of an agent: prompts of a log-normal length (median 665 tokens), answers of
20 to 200 tokens. Padding and balance are computed for 8 data-parallel ranks and Qwen2.5-1.5B; speed is
measured with a small policy on this machine, with one optimizer update in each of the three forms in turn.
Trainers that hold an update as one tensor pad to its longest row.

The saving from computing identical prompts of a group once is counted on groups of 8 ALFWorld episodes
(generated games) with the paper's recipe: the expert plays, and takes another action with a probability that
is high as early in training or low as late in training.
"""

from __future__ import annotations

from gigpo_mega.program import run_main
from tools.records import parser, publish


def main() -> None:
    """Print what is measured, and publish the record."""
    given = parser(__doc__).parse_args()
    from tools.bench.batches import bench  # torch: after the options

    record = bench()
    for numbers in record["identical_prompts"]:
        print("identical prompts     ", numbers)
    for name, numbers in record["forms"].items():
        print(f"{name:22}", numbers)
    publish(record, given)


if __name__ == "__main__":
    run_main(main)
