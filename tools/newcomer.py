"""How long a newcomer's first steps take: `python tools/newcomer.py [--save FILE] [--json]`.

Clones this repository's last commit into an empty folder, types there what README.md and
docs/get_started.md say, in a .venv of its own, and records the seconds of each command on four ways: to the
first curve, to an environment of one's own that is learned, to a converted checkpoint, and to a cluster's
dry run. The quickstart is interrupted after ten iterations, when its report shows a curve. Downloads count;
how fast they are depends on the package index.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gigpo_mega.program import run_main
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.telemetry.provenance import provenance
from tools.records import parser, publish

ROOT = Path(__file__).resolve().parents[1]
CURVE = 10  # iterations that make a curve
# Each way's commands, by the folder that they are typed in; `git clone` comes before the first.
WAYS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "first curve": ((".", "make quickstart"),),
    "own environment": (
        (".", "gigpo-mega init courier"),
        ("courier", "gigpo-mega coldstart courier.yaml --model.path null --output runs/first "
                    "--optimizer.lr 3e-3"),
        ("courier", "gigpo-mega train courier.yaml"),
    ),
    "own checkpoint": (
        (".", "python tools/make_smollm2.py --output runs/smollm2"),
        (".", "gigpo-mega convert import --hf runs/smollm2 --out runs/imported --tensor 3 --pipeline 2"),
        (".", "gigpo-mega convert verify --hf runs/smollm2 --checkpoint runs/imported"),
    ),
    "dry run": (
        (".", "gigpo-mega plan alfworld/qwen2.5-7b --gpu h100 --nodes 1"),
        (".", "gigpo-mega train alfworld/qwen2.5-7b --dry-run --model.path runs/smollm2 --parallel.tensor 1 "
              "--parallel.sequence_parallel false --environment.tasks.data runs/quickstart_games "
              "--evaluation.split valid_unseen"),
    ),
}  # fmt: skip


def main() -> None:
    """Take the four ways, and publish the record."""
    given = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "gigpo-mega")
    for way, steps in found["ways"].items():
        print(f"{way}: {found['minutes'][way]:.1f} minutes, {len(steps)} commands")
    publish({**provenance(), **found}, given)


def measure(clone: Path) -> dict[str, Any]:
    """Commands with their seconds of each way, its minutes, and what the two runs reached."""
    programs = clone / ".venv" / "bin"
    ways: dict[str, list[dict[str, Any]]] = {"first curve": [
        {"command": "git clone", "seconds": typed(f"git clone -q {ROOT} {clone}", ROOT, programs)["seconds"]}
    ]}  # fmt: skip
    for way, commands in WAYS.items():
        for folder, line in commands:
            until = first_curve(clone) if line == "make quickstart" else None
            ways.setdefault(way, []).append(typed(line, clone / folder, programs, until))
    runs = {"quickstart": clone / "runs/quickstart", "courier": clone / "courier/runs/courier"}
    reached = {name: [row["rollout/success"] for row in read_rows(run / "metrics.jsonl")]
               for name, run in runs.items()}  # fmt: skip
    size = subprocess.run(["du", "-sm", str(clone / ".venv")], check=True, capture_output=True, text=True)
    minutes = {way: sum(step["seconds"] for step in steps) / 60 for way, steps in ways.items()}
    return {"minutes": minutes, "ways": ways, "training": reached, "venv_mib": int(size.stdout.split()[0])}


def first_curve(clone: Path) -> Callable[[], bool]:
    """Whether the quickstart has done CURVE iterations."""
    return lambda: len(read_rows(clone / "runs/quickstart/metrics.jsonl")) >= CURVE


def typed(line: str, folder: Path, programs: Path, until: Callable[[], bool] | None = None) -> dict[str, Any]:
    """The seconds of a command in `folder`, with `programs` on PATH, as if activated.

    It is interrupted once `until` holds.

    Raises CalledProcessError if it fails.
    """
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | path
    start = time.monotonic()
    process = subprocess.Popen(shlex.split(line), cwd=folder, env=environment, start_new_session=True)
    while until and process.poll() is None and not until():
        time.sleep(0.5)
    stopped = until is not None and process.poll() is None
    if not stopped and process.wait():
        raise subprocess.CalledProcessError(process.returncode, line)
    seconds = time.monotonic() - start
    if stopped:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
    return {"command": line, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    run_main(main)
