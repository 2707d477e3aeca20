"""The same experiment over several seeds, as JSON and as a picture.

    python tools/train_seeds.py configs/quickstart.yaml --seeds 5 --name quickstart_seeds [--section.field X]

Writes docs/benchmarks/NAME.json (before, after, training curve and commit of every seed, overrides and
machine) and NAME.png. A seed sets task order, shuffling and the engine's sampling; games, panel and
cold-start policy stay the same. Runs are kept under runs/NAME; a seed that is complete there is not run
again. `--fresh-panel SEED` also plays the starting policy and every trained one on a panel of games that
were generated with another seed: games that no choice of settings has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gigpo_mega import options
from gigpo_mega.telemetry.curve import plot_seeds
from gigpo_mega.telemetry.metrics import read_rows

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the seeds one after another and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--name", default="quickstart_seeds")
    parser.add_argument("--fresh-panel", type=int, metavar="SEED", help="generate.seed of a second panel")
    arguments, overrides = parser.parse_known_args()
    folder = ROOT / "runs" / arguments.name
    seeds = [run(arguments.config, seed, folder, overrides) for seed in range(arguments.seeds)]
    record = {
        "config": str(arguments.config),
        "overrides": overrides,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "summary": summary(seeds),
        "seeds": seeds,
    }
    if arguments.fresh_panel is not None:
        record["fresh_panel"] = fresh_panel(arguments, folder, overrides)
    target = ROOT / "docs" / "benchmarks" / f"{arguments.name}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    plot_seeds(target, target.with_suffix(".png"))
    print(json.dumps(record["summary"]))
    if "fresh_panel" in record:
        print(json.dumps({key: record["fresh_panel"][key] for key in ("seed", "gain", "smallest_gain")}))


def run(config: Path, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """One seed's training success by iteration, and the panel before and after."""
    output = folder / str(seed)
    cfg = options.load([str(config), *overrides], "tools/train_seeds.py")
    last = output / f"evaluation_{cfg.steps:06d}.json"
    if not last.exists():
        command = [sys.executable, "-m", "gigpo_mega.train", str(config),
                   "--seed", str(seed), "--output", str(output)]  # fmt: skip
        resume = ["--resume"] if (output / "config.yaml").exists() else []
        start = time.monotonic()
        subprocess.run([*command, *overrides, *resume], check=True, cwd=ROOT)
        seconds = time.monotonic() - start
        (output / "run.json").write_text(json.dumps({"seconds": seconds, "commit": _commit()}))
    rows = read_rows(output / "metrics.jsonl")
    return {
        "seed": seed,
        **json.loads((output / "run.json").read_text()),
        "before": json.loads((output / "evaluation_000000.json").read_text()),
        "after": json.loads(last.read_text()),
        "training": [row["rollout/success"] for row in rows],
        # an iteration whose advantages are all 0 updates nothing and compares nothing
        "logprob_gap_mean": max(row.get("engine/logprob_gap_mean", 0.0) for row in rows),
    }


def fresh_panel(arguments: argparse.Namespace, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The starting policy and that of every seed on games generated with `arguments.fresh_panel`."""
    start = options.load([str(arguments.config), *overrides], "tools/train_seeds.py").model.path
    panel = {
        "--environment.tasks.data": str(folder / f"games_{arguments.fresh_panel}"),
        "--environment.tasks.generate.seed": str(arguments.fresh_panel),
        "--environment.tasks.generate.games.train": "1",
    }
    flags = [*overrides, *(part for flag in panel.items() for part in flag)]

    def play(policy: object, output: Path) -> dict[str, Any]:
        record = output / "evaluation.json"
        if not record.exists():
            command = [sys.executable, "-m", "gigpo_mega.evaluate", str(arguments.config), *flags]
            target = ["--model.path", str(policy), "--output", str(output)]
            subprocess.run([*command, *target], check=True, cwd=ROOT)
            (output / "commit").write_text(_commit())
        return json.loads(record.read_text()) | {"commit": (output / "commit").read_text()}

    plays = folder / f"panel_{arguments.fresh_panel}"
    before = play(start, plays / "start")
    after = [play(folder / str(s) / "policy", plays / str(s)) for s in range(arguments.seeds)]
    gains = [record["success"] - before["success"] for record in after]
    return {
        "seed": arguments.fresh_panel,
        "gain": float(np.mean(gains)),
        "smallest_gain": min(gains),
        "before": before,
        "after": after,
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds, extremes of the gain (all shares), the worst log-prob gap and the longest run."""
    before = np.array([seed["before"]["success"] for seed in seeds])
    after = np.array([seed["after"]["success"] for seed in seeds])
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "gain": float((after - before).mean()),
        "smallest_gain": float((after - before).min()),
        "largest_gain": float((after - before).max()),
        "largest_standard_error": max(
            seed[k]["standard_error"] for seed in seeds for k in ("before", "after")
        ),
        "logprob_gap_mean": max(seed["logprob_gap_mean"] for seed in seeds),
        "longest_seconds": max(seed["seconds"] for seed in seeds),
    }


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


if __name__ == "__main__":
    main()
