"""Measure the prefix cache in both context modes, window and append, with the real engine on the same games.

    python tools/bench_context.py --save docs/benchmarks/bench_context.json

The policy of the quickstart plays groups of episodes on its games. No prompt is cut, whatever the mode. The
cache is emptied before each of the `--repeats` collections, as a push of weights empties it before each
iteration. Turns per second are wall-clock, so other programs on the machine count: see load_average.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gigpo_mega.arguments import COUNT
from gigpo_mega.program import run_main
from gigpo_mega.telemetry.provenance import provenance
from tools.records import parser, publish


def main() -> None:
    """Print a line per mode, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--games", type=COUNT, default=16)
    options.add_argument("--group-size", type=COUNT, default=8)
    options.add_argument("--repeats", type=COUNT, default=3)
    given = options.parse_args()
    from tools.bench.context import bench, config  # torch: after the options

    made = provenance("sglang", "torch")
    os.chdir(Path(__file__).resolve().parents[1])  # the configuration names its policy from there
    with tempfile.TemporaryDirectory() as folder:
        modes = {
            mode: bench(config(mode, Path(folder), given.group_size), given.games, given.repeats)
            for mode in ("window", "append")
        }
    for mode, found in modes.items():
        print(f"{mode:7} {found['cached_share']:6.1%} of prompt tokens cached, "
              f"{found['prefilled_tokens_per_turn']} prefilled per turn, "
              f"{found['turns_per_second']} turns/s")  # fmt: skip
    sizes = {name: getattr(given, name) for name in ("games", "group_size", "repeats")}
    what = "ALFWorld games of configs/quickstart.yaml, its policy, SGLang"
    publish({"what": what, **made, **sizes, **modes}, given)


if __name__ == "__main__":
    run_main(main)
