"""Convert models of real shapes there and back; measure equality of bits and logits, seconds and peak memory.

    python tools/bench_conversion.py                              # all whose logits fit in memory
    python tools/bench_conversion.py --case Qwen2.5-7B --record   # only this one, which takes 47 GB of disk

Weights are random, except those of SmolLM2. Every conversion runs in a process of its own; its peak resident
memory is counted by the system and includes mapped file pages. With --record the cases that ran are replaced
in docs/benchmarks/conversion.json and in the table of docs/conversion.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gigpo_mega.program import run_main
from tools.bench.conversion_cases import CASES
from tools.records import parser, publish


def main() -> None:
    """Run the chosen cases, print them as a table, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--case", choices=[case.name for case in CASES], help="only this one")
    options.add_argument("--record", action="store_true", help="put the cases into docs")
    options.add_argument("--make", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    given = options.parse_args()
    chosen = [case for case in CASES if (case.name == given.case if given.case else case.logits)]
    import torch

    from tools.bench.conversion import bench, make, table, update_record

    torch.set_num_threads(1)
    if given.make:
        make(chosen[0].config, given.make)
        return
    record = bench(chosen)
    print(table(record))
    if given.record:
        update_record(record["cases"])
    publish(record, given)


if __name__ == "__main__":
    run_main(main)
