"""The same experiment over several seeds: cold start, runs, their panels before and after, and means."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.telemetry.provenance import commit, provenance
from gigpo_mega.telemetry.report.run_folder import KIND

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is repeated: a configuration with `overrides`, and the files that go on top of it."""

    config: Path
    overrides: Sequence[str] = ()
    coldstart: Path | None = None  # makes the policy that every run starts from
    panel: Path | None = None  # a second panel, never used for tuning

    def parts(self, *layers: Path) -> list[str]:
        """The options of a program: the files, then the overrides."""
        return [str(self.config), *map(str, layers), *self.overrides]

    def load(self, *layers: Path) -> Config:
        """The configuration with `layers` on top."""
        return load_config(self.parts(*layers), "tools/train_seeds.py")


def bench(experiment: Experiment, seeds: int, folder: Path) -> dict[str, Any]:
    """The record of `seeds` runs in `folder`; cold start, runs and panels that exist are not made again."""
    made = provenance("torch", "megatron-core", "sglang")
    said = {"config": str(experiment.config), "overrides": list(experiment.overrides)}
    start = {"cold_start": cold_start(experiment)} if experiment.coldstart else {}
    runs = [run(experiment, seed, folder) for seed in range(seeds)]
    fresh = {"fresh_panel": fresh_panel(experiment, seeds, folder)} if experiment.panel else {}
    return {**made, **said, **start, "summary": summary(runs), "seeds": runs, **fresh}


def cold_start(experiment: Experiment) -> dict[str, Any]:
    """Seconds and commit of the cold start that makes the policy of the runs."""
    assert experiment.coldstart is not None
    output = experiment.load(experiment.coldstart).output
    command = ["coldstart", *experiment.parts(experiment.coldstart)]
    return {"config": str(experiment.coldstart), **_made(output, output / "policy", command)}


def run(experiment: Experiment, seed: int, folder: Path) -> dict[str, Any]:
    """Training success of one seed by iteration, and the panel before and after."""
    output = folder / str(seed)
    last = output / f"evaluation_{experiment.load().iterations:06d}.json"
    resume = ["--resume"] if (output / "config.yaml").exists() else []
    options = ["--seed", str(seed), "--output", str(output), *resume]
    made = _made(output, last, ["train", *experiment.parts(), *options])
    rows = read_rows(output / "metrics.jsonl")
    return {
        "seed": seed,
        **made,
        "before": json.loads((output / "evaluation_000000.json").read_text()),
        "after": json.loads(last.read_text()),
        "training": [row["rollout/success"] for row in rows],
        "kinds": by_kind(rows),
        # an iteration whose advantages are all 0 makes no update and no comparison
        "logprob_gap_mean": max(row.get("engine/logprob_gap_mean", 0.0) for row in rows),
    }


def by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Training success of each task type by iteration; None where it had no episode."""
    names = sorted({name for row in rows for name in row if name.startswith(KIND)})
    return {name.removeprefix(KIND): [row.get(name) for row in rows] for name in names}


def fresh_panel(experiment: Experiment, seeds: int, folder: Path) -> dict[str, Any]:
    """Success of the starting policy and of every trained one on the panel of `experiment.panel`."""
    assert experiment.panel is not None
    start = experiment.load().model.path
    evaluate = ["evaluate", *experiment.parts(experiment.panel)]

    def play(policy: object, name: str) -> dict[str, Any]:
        output = folder / "fresh_panel" / name
        record = output / "evaluation.json"
        options = ["--model.path", str(policy), "--output", str(output)]
        made = _made(output, record, [*evaluate, *options])
        return json.loads(record.read_text()) | {"commit": made["commit"]}

    before = play(start, "start")
    after = [play(folder / str(seed) / "policy", str(seed)) for seed in range(seeds)]
    gains = [record["success"] - before["success"] for record in after]
    return {
        "config": str(experiment.panel),
        "gain": float(np.mean(gains)),
        "smallest_gain": min(gains),
        "before": before,
        "after": after,
    }


def _made(output: Path, target: Path, command: Sequence[str]) -> dict[str, Any]:
    """Seconds and commit of a program that makes `target` in `output`; it runs if that does not exist."""
    if not target.exists():
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "gigpo_mega", *command], check=True, cwd=ROOT)
        if not target.exists():  # a run that is stopped by SIGTERM ends with status 0
            raise UserError(f"{output} was stopped before it had {target.name}; the same command goes on")
        made = {"seconds": time.monotonic() - start, "commit": commit()}
        (output / "run.json").write_text(json.dumps(made))
    return json.loads((output / "run.json").read_text())


def summary(seeds: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds and extremes of the gain (shares), the worst log-prob gap and the longest run."""
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
