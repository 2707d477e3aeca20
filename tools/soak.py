"""Train under constant faults and audit what was collected: nothing lost, nothing twice, nothing left behind.

    python tools/soak.py --minutes 40 --save docs/benchmarks/soak.json
    python tools/soak.py --fault "everything is killed" --rounds 20 --save docs/benchmarks/kills.json

Real engines are killed and stalled, workers, the run itself and everything at once are killed, the run is
stopped; environments fail, hang and end their processes. A run that ends is continued by the command that
started it. Exits with status 1 if anything is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gigpo_mega.arguments import SEED, number
from gigpo_mega.program import run_main
from tools.records import parser, publish

MINUTES, SECONDS, SHARE = number(float, 0.1, 10_000), number(float, 1, 3600), number(float, 0, 0.5)
ROUNDS = number(int, 1, 10_000)


def main() -> None:
    """Print the audit, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=MINUTES, default=40.0)
    options.add_argument("--pause", type=SECONDS, default=45.0, help="mean seconds between faults")
    options.add_argument("--hazard", type=SHARE, default=0.004, help="share of environment calls that fail")
    options.add_argument("--seed", type=SEED, default=0)
    options.add_argument("--fault", action="append", help="only this kind; repeat it for several (all)")
    options.add_argument("--rounds", type=ROUNDS, help="end when each kind has happened so often")
    given = options.parse_args()
    from gigpo_mega.telemetry.provenance import provenance
    from tools.bench.soak import FAULTS, soak

    faults = given.fault or list(FAULTS)
    if unknown := set(faults) - set(FAULTS):
        options.error(f"--fault {min(unknown)}: none of {', '.join(FAULTS)}")
    made = {"benchmark": "soak", **provenance("torch", "megatron-core", "sglang")}
    with TemporaryDirectory() as folder:
        found = soak(Path(folder), given.minutes, given.pause, given.hazard, given.seed, faults, given.rounds)
    print(json.dumps(found, indent=1))
    publish(made | found, given)
    if any(found["wrong"].values()):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
