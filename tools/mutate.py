"""Put plausible wrong lines into a copy of the code, one at a time, and see whether the tests notice.

    python tools/mutate.py                       # all
    python tools/mutate.py --changed             # those that are not in the record as they are now
    python tools/mutate.py --only "dual clip"    # those whose name has this text; writes nothing

Writes docs/benchmarks/mutations.json and, from it, docs/mutations.md. A mutation lists the tests that must
notice it (tools/mutations/*.yaml). They run in the unchanged copy first: a test that fails anyway notices
nothing. The exit status is 1 if a mutation survives.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gigpo_mega.errors import UserError
from gigpo_mega.program import run_main
from gigpo_mega.telemetry.progress import stage
from gigpo_mega.telemetry.provenance import provenance
from tools.mutations import ROOT, Mutation, Outcome, Tree, load_mutations, page

RECORD, PAGE = ROOT / "docs/benchmarks/mutations.json", ROOT / "docs/mutations.md"


def main() -> int:
    """Run the mutations and say which survive; returns the exit status."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="TEXT", help="only mutations whose name has TEXT, and no record")
    which.add_argument("--changed", action="store_true", help="only those that the record lacks")
    given = parser.parse_args()
    before = json.loads(RECORD.read_text(encoding="utf-8")) if given.changed else {"mutations": []}
    known = {row["name"]: row for row in before["mutations"]}
    listed = load_mutations()
    chosen = [mutation for mutation in listed if _chosen(mutation, given.only, known)]
    if not chosen:
        raise UserError("no mutation is new, or has that text in its name; see tools/mutations/*.yaml")
    made = provenance("torch", "megatron-core", "transformers", "numpy")  # before the copy is
    outcomes = run(chosen)
    survivors = [m.name for m, outcome in zip(chosen, outcomes, strict=True) if outcome.killed_by is None]
    if given.only is None:
        entries = [_entry(m, outcome) for m, outcome in zip(chosen, outcomes, strict=True)]
        rows = known | {entry["name"]: entry for entry in entries}
        record = before | {"mutations": [rows[mutation.name] for mutation in listed]}
        if given.changed:
            again = {"commit": made["commit"], "device": made["device"], "mutations": len(entries)}
            record["again"] = [*before.get("again", []), again]
        else:
            record = made | {"seconds": round(sum(outcome.seconds for outcome in outcomes))} | record
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(record), encoding="utf-8")
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations noticed")
    for name in survivors:
        print(f"survived: {name}")
    return int(bool(survivors))


def run(mutations: list[Mutation]) -> list[Outcome]:
    """The outcome of each mutation, in a copy whose tests pass without any; UserError if they do not."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        whole = tree.test(sorted({test for mutation in mutations for test in mutation.tests}))
        if whole.killed_by is not None:
            raise UserError(f"{whole.killed_by} fails without any mutation; make it pass first")
        outcomes: list[Outcome] = []
        with stage("mutate", len(mutations), "mutations") as bar:
            for mutation in mutations:
                outcomes.append(tree.mutate(mutation))
                bar.advance()
    return outcomes


def _chosen(mutation: Mutation, text: str | None, known: dict[str, Any]) -> bool:
    """Whether the name of `mutation` has `text`, and `known` has no outcome of it as it is.

    Nor has it one if the test that noticed it has another name by now.
    """
    row = known.get(mutation.name, {"killed_by": None})
    recorded = {name: row.get(name) for name in asdict(mutation)} == json.loads(json.dumps(asdict(mutation)))
    if recorded and row["killed_by"]:
        file, _, test = row["killed_by"].partition("::")
        recorded = f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")
    return not recorded and (text is None or text in mutation.name)


def _entry(mutation: Mutation, outcome: Outcome) -> dict[str, Any]:
    return asdict(mutation) | {"killed_by": outcome.killed_by, "seconds": round(outcome.seconds, 1)}


if __name__ == "__main__":
    run_main(main)
