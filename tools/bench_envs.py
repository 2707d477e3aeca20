"""Measure environments on one core: steps per second, resets, memory; other implementations in the same run.

    python tools/bench_envs.py --env alfworld --save docs/benchmarks/bench_envs_alfworld.json

The modules of tools/bench/environments say what is measured. Times are CPU seconds of this process, so that
other programs on the machine do not count.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from gigpo_mega.arguments import COUNT, SEED
from gigpo_mega.program import run_main
from tools.records import parser, publish


def main() -> None:
    """Print what is measured, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--env", choices=["alfworld", "search", "sokoban", "webshop"], default="alfworld")
    options.add_argument("--games", type=COUNT, default=30, help="of ALFWorld, all task types in turn")
    options.add_argument("--episodes", type=COUNT, default=4, help="walks on each game")
    options.add_argument("--steps", type=COUNT, default=50, help="steps of a walk")
    options.add_argument("--rooms", type=COUNT, default=500, help="of Sokoban")
    options.add_argument("--products", type=COUNT, default=5000, help="of the generated shop")
    options.add_argument("--original", type=Path, metavar="DIR", help="checkout of WebShop")
    options.add_argument("--repeats", type=COUNT, default=5, help="of Sokoban and search; medians count")
    options.add_argument("--seed", type=SEED, default=0)
    given = options.parse_args()
    module = importlib.import_module(f"tools.bench.environments.{given.env}")
    result = module.bench(given)
    for line in module.lines(result):
        print(line)
    publish(result, given)


if __name__ == "__main__":
    run_main(main)
