"""The same experiment over several seeds, as JSON and as a picture.

    python tools/train_seeds.py configs/quickstart.yaml --seeds 5 --name quickstart_seeds [--section.field X]

Writes docs/benchmarks/NAME.json (before, after, training curve and commit of every seed, overrides and
machine) and NAME.png. A seed sets the order of tasks, shuffling and the sampling of the engine; games, panel
and cold-start policy stay the same. Runs are kept under runs/NAME; a seed that is complete there is not run
again.

`--cold-start FILE` and `--fresh-panel FILE` go on top of CONFIG. The first makes the policy that the runs
start from, unless it exists, and keeps the seconds that took. The second describes a panel of held-out tasks
that were never used for tuning, which the starting policy and every trained one play.

`--beside OTHER` draws the record docs/benchmarks/OTHER.json, e.g. of another estimator, into the picture;
`--draw` makes the picture of a record that exists, and runs nothing. `--reference FILE` writes the mean
curves of the record, which the quickstart's report draws beside a run:

    python tools/train_seeds.py configs/quickstart.yaml --seeds 3 --name quickstart_grpo \\
        --reference configs/quickstart_grpo.json --advantage.estimator grpo
    python tools/train_seeds.py configs/quickstart.yaml --beside quickstart_grpo --draw
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gigpo_mega.arguments import COUNT
from gigpo_mega.program import run_main

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "benchmarks"


def main() -> None:
    """Run the seeds one after another, and write the record and the picture."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=COUNT, default=5)
    parser.add_argument("--name", default="quickstart_seeds")
    parser.add_argument("--cold-start", type=Path, metavar="FILE", help="what makes the starting policy")
    parser.add_argument("--fresh-panel", type=Path, metavar="FILE", help="a second panel")
    parser.add_argument("--beside", type=_record, metavar="OTHER", help="another record, for the picture")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="write the mean curves to this file")
    parser.add_argument("--draw", action="store_true", help="only draw the picture of a record")
    given, overrides = parser.parse_known_args()
    from gigpo_mega.telemetry.report.curve import plot_seeds, reference
    from tools.bench.seeds import Experiment, bench

    target = RECORDS / f"{given.name}.json"
    if given.draw:
        record = json.loads(target.read_text())
    else:
        experiment = Experiment(given.config, overrides, given.cold_start, given.fresh_panel)
        record = bench(experiment, given.seeds, ROOT / "runs" / given.name)
        target.write_text(json.dumps(record, indent=1) + "\n")
    plot_seeds(target, target.with_suffix(".png"), given.beside)
    if given.reference:
        given.reference.write_text(json.dumps(reference(record)) + "\n")
    print(json.dumps(record["summary"]))
    if not given.draw and (panel := record.get("fresh_panel")):
        print(json.dumps({key: panel[key] for key in ("config", "gain", "smallest_gain")}))


def _record(name: str) -> Path:
    """The file of the record `name`."""
    if not (file := RECORDS / f"{name}.json").is_file():
        raise argparse.ArgumentTypeError(f"{file} does not exist")
    return file


if __name__ == "__main__":
    run_main(main)
