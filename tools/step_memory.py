"""Peak memory of one optimizer update, with fused log-probs and with logits.

    python tools/step_memory.py --save docs/benchmarks/step_memory.json

Builds a small policy with a large vocabulary, once for each `kernels.backend`, and counts every byte that an
update allocates beyond what was allocated before it.
"""

from __future__ import annotations

from gigpo_mega.arguments import COUNT
from gigpo_mega.program import run_main
from tools.records import parser, publish


def main() -> None:
    """Print a line per backend, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--rows", type=COUNT, default=16, help="rows of 64 response tokens")
    options.add_argument("--vocab", type=COUNT, default=32768)
    options.add_argument("--hidden", type=COUNT, default=64)
    given = options.parse_args()
    from tools.bench.step_memory import bench  # torch: after the options

    record = bench(given.rows, given.vocab, given.hidden)
    for one in record["updates"]:
        tensors = one["peak"] / one["logits"]
        print(f"{one['backend']:10} {one['peak'] / 2**20:8.1f} MiB at the peak, {tensors:.2f} float32 [T, V]")
    publish(record, given)


if __name__ == "__main__":
    run_main(main)
