"""Real weights learn for as long as there is time: `python -m tools.gpu.learn --minutes 20 --output FOLDER`.

Clones the expert into SmolLM2-135M-Instruct (tools/make_smollm2.py), trains the policy with GiGPO for half of
the minutes that are left, and then with GRPO for as many iterations. Panels, and the start of servers, come
on top. Writes FOLDER/gpu_learn.json and gpu_learn_grpo.json, as tools/train_seeds.py does, and gpu_learn.png.
A field of the configuration may follow: `--coldstart.updates 2 --model.dtype float32`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from gigpo_mega.arguments import number
from gigpo_mega.errors import UserError
from gigpo_mega.program import run_main
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.telemetry.provenance import provenance
from gigpo_mega.telemetry.report.curve import plot_seeds
from tools.bench.seeds import ROOT, Experiment, cold_start, run, summary

CONFIGS = ROOT / "configs" / "alfworld"
WEIGHTS = Path("runs/smollm2")
ESTIMATORS = {"gigpo": "gpu_learn", "grpo": "gpu_learn_grpo"}
_PROGRAM = (sys.executable, "-m", "gigpo_mega")
_GRACE = 180.0  # seconds to end an update and to save


def main() -> None:
    """Train, write the records and the picture, and print what was learned as the last line."""
    options = argparse.ArgumentParser(
        prog="python -m tools.gpu.learn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--minutes", type=number(float, 0.1), required=True, help="of cold start and training"
    )
    options.add_argument("--output", type=Path, required=True, help="folder of records and picture")
    options.add_argument("--runs", type=Path, default=ROOT / "runs" / "gpu_learn", help="folder of the runs")
    options.add_argument("--config", type=Path, default=CONFIGS / "smollm2-135m.yaml")
    options.add_argument("--cold-start", type=Path, default=CONFIGS / "smollm2-135m_coldstart.yaml")
    given, overrides = options.parse_known_args()
    experiment = Experiment(given.config, overrides, given.cold_start)
    print(json.dumps(learn(experiment, given.minutes, given.runs.absolute(), given.output.absolute())))


def learn(experiment: Experiment, minutes: float, runs: Path, output: Path) -> dict[str, Any]:
    """Success before and after, seconds of an iteration and of its advantages, and memory, by estimator.

    Records and picture go to `output`. Raises UserError if there are no weights, or no time for an iteration.
    """
    _check_weights(experiment)
    end = time.monotonic() + 60 * minutes
    cold = cold_start(experiment)
    left = end - time.monotonic()
    if left <= 0:
        raise UserError(
            f"--minutes {minutes:g}: the cold start alone took {cold['seconds']:.0f} s; give more"
        )
    iterations = iterations_within(left / len(ESTIMATORS), experiment, runs / "gigpo" / "0")
    found: dict[str, Any] = {"iterations": iterations}
    for name, record in ESTIMATORS.items():
        made = provenance("torch", "megatron-core", "sglang")
        of = replace(experiment, overrides=[*experiment.overrides, *_chosen(name, iterations)])
        seed = run(of, 0, runs / name)
        rows = read_rows(runs / name / "0" / "metrics.jsonl")
        seed["seconds"] = sum(row["time/total"] for row in rows)  # GiGPO's were two starts
        said = {"config": str(of.config), "overrides": list(of.overrides), "cold_start": cold}
        whole = {**made, **said, "summary": summary([seed]), "seeds": [seed]}
        (output / f"{record}.json").write_text(json.dumps(whole, indent=1) + "\n")
        found[name] = {
            "before": seed["before"]["success"],
            "after": seed["after"]["success"],
            "iteration_seconds": median(row["time/total"] for row in rows),
            "advantage_seconds": median(row["time/advantage"] for row in rows),
            "learner_gib": max(row["memory/learner_gib"] for row in rows),
        }
    one, other = (output / f"{record}.json" for record in ESTIMATORS.values())
    plot_seeds(one, one.with_suffix(".png"), other)
    return found


def _check_weights(experiment: Experiment) -> None:
    layers = [experiment.coldstart] if experiment.coldstart else []
    if experiment.load(*layers).model.path == WEIGHTS and not (ROOT / WEIGHTS).is_dir():
        made = f"python tools/make_smollm2.py --output {WEIGHTS} --dtype bfloat16"
        raise UserError(f"model.path: {WEIGHTS} does not exist; {made} makes it")


def iterations_within(seconds: float, experiment: Experiment, output: Path) -> int:
    """How many of its iterations a run with GiGPO completes in `output` before SIGTERM, with which it saves.

    Raises UserError if it completes none, or fails.
    """
    options = [*experiment.parts(), *_chosen("gigpo"), "--output", str(output), "--resume", "auto"]
    with subprocess.Popen([*_PROGRAM, "train", *options], cwd=ROOT) as process:
        try:
            status, stopped = process.wait(seconds), False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            status, stopped = _reaped(process), True
    done = len(read_rows(output / "metrics.jsonl"))
    if stopped and done == 0:
        raise UserError(f"{seconds:.0f} s of training were not enough for an iteration; give more --minutes")
    if status != 0:
        raise UserError(f"the run in {output} ended with status {status}")
    return done


def _reaped(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise UserError(f"the run did not end within {_GRACE:.0f} s of SIGTERM") from None


def _chosen(estimator: str, iterations: int | None = None) -> Sequence[str]:
    length = [] if iterations is None else ["--iterations", str(iterations)]
    return ["--advantage.estimator", estimator, *length]


if __name__ == "__main__":
    run_main(main)
