"""Time `estimate` on a table shaped like one of ALFWorld: `python tools/bench_advantage.py --rows 51200`.

Tasks of 8 episodes of up to 50 steps, which share states (the first one always). Timed are scores, returns,
grouping and both normalizations, all on one thread; anchor keys are made during rollout. With --memory: what
every estimator allocates at its peak. With --similarity: CPU seconds of `advantage.similarity` on an
iteration of search QA, 256 tasks of 20 steps, and of difflib.
"""

from __future__ import annotations

from typing import Any

from gigpo_mega.algorithms.advantage import BUILT_IN
from gigpo_mega.arguments import COUNT
from gigpo_mega.program import run_main
from tools.records import parser, publish


def main() -> None:
    """Print a table, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--rows", type=COUNT, default=51200, help="rows of the table")
    options.add_argument("--estimator", default="gigpo", choices=BUILT_IN, help="what is timed")
    options.add_argument("--repeats", type=COUNT, default=31, help="timed runs, of which the median counts")
    instead = options.add_mutually_exclusive_group()
    instead.add_argument("--memory", action="store_true", help="measure the memory of all estimators instead")
    instead.add_argument("--similarity", action="store_true", help="time grouping by similarity instead")
    given = options.parse_args()
    if given.similarity:
        record = similarity()
    elif given.memory:
        record = memory(given.rows)
    else:
        record = estimate(given.rows, given.repeats, given.estimator)
    publish(record, given)


def estimate(rows: int, repeats: int, estimator: str) -> dict[str, Any]:
    """Measure and print the seconds of all parts of an estimator."""
    from tools.bench.advantage import make_table, measure

    record = measure(make_table(rows), repeats, estimator)
    print(f"{estimator}, {rows} rows: {1000 * record['seconds']:.1f} ms (median of {repeats})")
    for name, value in record["parts"].items():
        print(f"  {name:18s} {1000 * value:6.1f} ms")
    return record


def memory(rows: int) -> dict[str, Any]:
    """Measure and print what every estimator allocates at its peak."""
    from tools.bench.advantage import make_table, measure_memory

    record = measure_memory(make_table(rows))
    for name, size in record["peak_bytes"].items():
        print(f"{name:28} {size / 1e6:6.2f} MB, {size / rows:4.0f} bytes per step")
    return record


def similarity() -> dict[str, Any]:
    """Measure and print the seconds of grouping by similarity."""
    from tools.bench.similarity import measure_similarity

    record = measure_similarity(tasks=256, compared=16)
    print(f"similarity, {record['rows']} rows: {record['cpu_seconds']:.1f} CPU s")
    plain, compared = record["difflib_cpu_seconds_of_all_tasks"], record["difflib_tasks"]
    print(f"difflib: {plain:.0f} CPU s, extrapolated from {compared} tasks")
    return record


if __name__ == "__main__":
    run_main(main)
