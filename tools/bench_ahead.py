"""Measure what `rollout.max_staleness` saves here: seconds of an iteration, taking turns and ahead.

    python tools/bench_ahead.py --save docs/benchmarks/bench_ahead.json

Runs the quickstart's first iterations in both modes, one after the other, `--pairs` times. What counts are
whole iterations by the run's own `time/total`, without the first, before which engines and learner are cold,
and the last, beside which nothing later is played. Other programs on the machine count, too: see
load_average, and compare the modes of one pair.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from gigpo_mega.arguments import COUNT, number
from gigpo_mega.program import run_main
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.telemetry.provenance import provenance
from tools.records import parser, publish

ROOT = Path(__file__).resolve().parents[1]
MODES = {
    "turns": (),
    "ahead": ("--rollout.max_staleness", "1"),
}
STAGES = ("total", "rollout", "update", "push")


def main() -> None:
    """Print a line per run and the ratio of the modes, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--pairs", type=COUNT, default=3)
    options.add_argument("--iterations", type=number(int, 3), default=10, help="of a run, at least 3")
    given = options.parse_args()
    made = provenance("sglang", "torch")
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for pair in range(given.pairs):
        for mode, fields in MODES.items():
            found = _run(fields, given.iterations, seed=pair)
            runs[mode].append(found)
            print(f"pair {pair}  {mode:5}  " + "  ".join(f"{name} {found[name]:.2f} s" for name in STAGES))
    pairs = zip(runs["turns"], runs["ahead"], strict=True)
    ratios = [round(ahead["total"] / turns["total"], 4) for turns, ahead in pairs]
    print(f"ahead / turns: {median(ratios):.2f}")
    publish({**made, "iterations": given.iterations, **runs, "ratios": ratios}, given)


def _run(fields: tuple[str, ...], iterations: int, seed: int) -> dict[str, float]:
    """Median seconds of the stages, and the share of tokens that are an iteration old."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        subprocess.run(
            [sys.executable, "-m", "gigpo_mega.train", "configs/quickstart.yaml",
             "--output", str(output), "--iterations", str(iterations), "--seed", str(seed),
             "--evaluation.before", "false", "--evaluation.episodes", "1",
             "--objective.old_logprob", "engine", *fields],
            cwd=ROOT, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        rows: list[dict[str, Any]] = read_rows(output / "metrics.jsonl")[1:-1]
    seconds = {name: round(median(row[f"time/{name}"] for row in rows), 3) for name in STAGES}
    old = median(row.get("staleness/share_1", 0.0) for row in rows)
    return {**seconds, "tokens_one_iteration_old": round(old, 4)}


if __name__ == "__main__":
    run_main(main)
