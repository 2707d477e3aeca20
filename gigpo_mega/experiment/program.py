"""Run an experiment's variants with its seeds, and compare them: `gigpo-mega experiment SPEC.yaml`.

SPEC names a recipe, the variants as fields in which they differ from it, and the seeds
(docs/experiments). Every seed has a cold start of its own; its variants begin with the same policy and
play the same tasks in the same order, equally many episodes. All variants of a seed are run before the next
seed begins. A run that was interrupted, however, is continued; one whose record is in the store is not run
again. Each attempt in a record says its commit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gigpo_mega.arguments import COUNT, SEED
from gigpo_mega.experiment.analysis import analyze
from gigpo_mega.experiment.jobs import Job, jobs, policy_of
from gigpo_mega.experiment.page import render
from gigpo_mega.experiment.pictures import draw
from gigpo_mega.experiment.runner import Progress, complain, run_jobs
from gigpo_mega.experiment.spec import Spec, load_spec
from gigpo_mega.experiment.store import Store, coldstart_record, record_of
from gigpo_mega.experiment.tables import markdown
from gigpo_mega.storage.files import replace_text
from gigpo_mega.tasks import load_tasks


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the summary, the pictures and the page; raises UserError."""
    options = _parser().parse_args(argv)
    spec, name = load_spec(options.spec), options.spec.stem
    folder = options.output or Path("runs/experiments") / name
    store = Store(options.store or options.spec.with_suffix(""))
    wanted = jobs(spec, folder, options.seeds)
    store.read(spec)  # refuses records of other settings before anything runs
    if options.dry_run:
        todo = _todo(store, wanted)
        print(*(f"{'todo' if job in todo else 'done'} {job.name}" for job in wanted), sep="\n")
        return
    failed = [] if options.analyze else _run(spec, folder, store, wanted, options.jobs)
    try:
        print(publish(name, spec, store, folder))
    finally:
        complain(failed)  # of a store without runs, too, if that is why


def publish(name: str, spec: Spec, store: Store, folder: Path) -> Path:
    """Write summary, tables and pictures into the store; the page, whose path it returns, into `folder`."""
    records = store.read(spec)
    summary = analyze(spec, records)
    replace_text(store.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    replace_text(store.folder / "summary.md", markdown(name, spec, summary))
    pictures = draw(spec, summary, records, store.folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    replace_text(page, render(name, spec, summary, pictures))
    return page


def _run(spec: Spec, folder: Path, store: Store, wanted: Sequence[Job], parallel: int) -> list[Job]:
    """Run those jobs that need it; returns those that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    for job in _todo(store, wanted):
        if job.done:  # it ended just before we did
            _finish(spec, folder, store, job)
    if todo := _todo(store, wanted):
        for variant in spec.variants:
            load_tasks(spec.config(variant))  # generates them if need be, before several runs want to at once
    progress = Progress(todo, len(wanted) - len(todo), parallel, sys.stderr)
    return run_jobs(todo, parallel, lambda job: _finish(spec, folder, store, job), progress)


def _todo(store: Store, wanted: Sequence[Job]) -> list[Job]:
    """Runs and panels without a record, and cold starts whose policy they need and do not find."""
    without = [job for job in wanted if job.kind != "coldstart" and not store.path(job).exists()]
    needed = {job.after for job in without if not job.ready}
    return [job for job in wanted if job in without or job.result in needed]


def _finish(spec: Spec, folder: Path, store: Store, job: Job) -> str:
    """Keep the record of a job that has ended, and say what came out."""
    if job.kind == "coldstart":
        return "cloned"
    if job.kind == "panel":
        record = coldstart_record(job, policy_of(spec, job.seed, folder).parent)
    else:
        record = record_of(job, store.panel_before(spec, job.seed))
    store.write(job, record)
    ends = [record[side]["success"] for side in ("before", "after") if record.get(side)]
    return " -> ".join(f"{100 * success:.1f}%" for success in ends)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gigpo-mega experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.yaml")
    parser.add_argument("--jobs", type=COUNT, default=1, help="runs at once, each of about one core (1)")
    parser.add_argument(
        "--seeds",
        type=lambda text: [SEED(seed) for seed in text.split(",")],
        default=[],
        help="only these of SPEC's seeds: 1,2,3",
    )
    parser.add_argument("--output", type=Path, help="folder of the runs (runs/experiments/NAME)")
    parser.add_argument("--store", type=Path, help="folder of the records (SPEC without .yaml)")
    parser.add_argument("--analyze", action="store_true", help="run nothing, compare what the store has")
    parser.add_argument("--dry-run", action="store_true", help="list runs and what is done, start none")
    return parser
