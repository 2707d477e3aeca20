"""Time `estimate` on a table shaped like ALFWorld's: `python tools/bench_advantage.py --rows 51200`.

Tasks of 8 episodes of up to 50 steps, which share states (the first one always). Timed are scores, returns,
grouping and both normalisations, all on one thread; anchor keys are made during rollout.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gigpo_mega.algorithms.advantage import anchor_groups, columns, estimate, rules
from gigpo_mega.algorithms.grouping import anchor_key
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.errors import UserError, run_main
from gigpo_mega.types import RowTable, Step
from kernels.advantage.reference import relative, score_and_returns

EPISODES_PER_TASK = 8
MAX_STEPS = 50
STATES_PER_TASK = 60
# The same work by the official implementation's own functions, on a table of as many rows.
REFERENCE = "langfengQ/verl-agent@796ed31, one run on one CPU thread, recorded once"
REFERENCE_SECONDS = {51200: 117.0}


def make_table(rows: int, seed: int = 0) -> RowTable:
    """A table of exactly `rows` rows: half of the episodes succeed with 10, every tenth action is invalid."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, MAX_STEPS + 1, size=rows)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), rows)) + 1]
    lengths[-1] -= lengths.sum() - rows
    trajectory = np.repeat(np.arange(len(lengths)), lengths)
    last = np.cumsum(lengths) - 1
    step = np.arange(rows) - np.repeat(last + 1 - lengths, lengths)
    group = trajectory // EPISODES_PER_TASK
    state = np.minimum(rng.geometric(0.05, size=rows), STATES_PER_TASK) * (step > 0)
    reward = np.zeros(rows)
    reward[last] = 10.0 * rng.integers(0, 2, size=len(last))
    seen = zip(state.tolist(), group.tolist(), strict=True)
    keys = b"".join(anchor_key(f"state {index}", f"task {task}") for index, task in seen)
    ids, valid = np.zeros(1, dtype=np.int32), rng.random(rows) >= 0.1
    filler = Step(ids, ids, ids.astype(np.float32), 0.0, True, keys[:16], 0)  # columns are all that is read
    anchor = np.frombuffer(keys, dtype=">u8").astype(np.uint64).reshape(-1, 2)
    return RowTable(group, trajectory, step, reward, valid, anchor, (filler,) * rows)


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Wall-clock seconds of each of `repeats` runs after one to warm up, sorted."""
    work()
    taken: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return sorted(taken)


def measure(rows: RowTable, repeats: int) -> dict[str, Any]:
    cfg = AdvantageConfig()
    how, table = rules(cfg), columns(rows, cfg)
    whole = seconds(lambda: estimate(rows, cfg), repeats)
    (score, returns), groups = score_and_returns(table, how), anchor_groups(rows, cfg)
    parts: dict[str, Callable[[], object]] = {
        "grouping": lambda: anchor_groups(rows, cfg),
        "scores and returns": lambda: score_and_returns(table, how),
        "episode level": lambda: relative(score, rows.group, how.episode, rows.step == 0),
        "step level": lambda: relative(returns, groups, how.step),
    }
    return {
        "benchmark": "advantage",
        "rows": len(rows),
        "tasks": int(rows.group.max()) + 1,
        "trajectories": int(rows.trajectory.max()) + 1,
        "step_groups": int(groups.max()) + 1,
        "dtype": "float64",
        "threads": 1,
        "repeats": repeats,
        "seconds": statistics.median(whole),
        "quantiles": {"min": whole[0], "p10": whole[repeats // 10], "p90": whole[repeats * 9 // 10]},
        "parts": {name: statistics.median(seconds(work, repeats)) for name, work in parts.items()},
        "reference_seconds": REFERENCE_SECONDS.get(len(rows)),
        "reference": REFERENCE,
        "commit": commit(),
        "device": device(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def device() -> str:
    """The processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.processor() or platform.machine()


def main() -> int:
    """Print a table, and with --json the record as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=51200, help="rows of the table")
    parser.add_argument("--repeats", type=int, default=31, help="timed runs, of which the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--save", type=Path, help="also write the JSON object to this file")
    options = parser.parse_args()
    for name in ("rows", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be >= 1, got {getattr(options, name)}")
    record = measure(make_table(options.rows), options.repeats)
    print(f"estimate, {options.rows} rows: {1000 * record['seconds']:.1f} ms (median of {options.repeats})")
    for name, value in record["parts"].items():
        print(f"  {name:18s} {1000 * value:6.1f} ms")
    if record["reference_seconds"]:
        print(f"reference: {record['reference_seconds']:.0f} s ({REFERENCE})")
    if options.save:
        options.save.write_text(json.dumps(record, indent=1) + "\n")
    if options.json:
        print(json.dumps(record))
    return 0


if __name__ == "__main__":
    run_main(main)
