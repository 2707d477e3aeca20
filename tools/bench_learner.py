"""Tokens per second of the policy update on random rows: `python tools/bench_learner.py`.

On CUDA the shape is that of Qwen2.5-1.5B in bfloat16 (`--model` takes another shape known by name), on a CPU
a small one. Timed is what a run does with the rows of an iteration: packing, forward and backward pass,
policy loss, gradient reduction and optimizer. `--backend` chooses how log-probabilities are computed.
"""

from __future__ import annotations

from gigpo_mega.arguments import COUNT
from gigpo_mega.config.load import FIELDS
from gigpo_mega.program import run_main
from tools.records import parser, publish


def main() -> None:
    """Print a line, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--model", help="a shape known by name (qwen2.5-1.5b on CUDA, else a small one)")
    options.add_argument("--layers", type=COUNT, help="of these the first so many, if a GPU holds no more")
    options.add_argument("--rows", type=COUNT, help="rows of an update")
    options.add_argument("--updates", type=COUNT, default=5, help="timed updates, after two to warm up")
    backends = FIELDS["kernels.backend"].accepts
    options.add_argument("--backend", choices=backends, default="auto", help="of log-probabilities")
    given = options.parse_args()
    from tools.bench.learner import bench  # torch: after the options

    record = bench(given.model, given.layers, given.rows, given.backend, given.updates)
    mfu = f", MFU {record['mfu']:.1%}" if record["mfu"] else ""
    print(f"{record['model']} on {record['device']}: {record['tokens_per_second']:,.0f} tokens/s{mfu}, "
          f"{record['of_measured_product']:.1%} of a measured matrix product")  # fmt: skip
    publish(record, given)


if __name__ == "__main__":
    run_main(main)
