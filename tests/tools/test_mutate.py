"""The list of wrong lines fits the code, the tool tells noticed from unnoticed, and the page is current."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tools.mutate import PAGE, RECORD
from tools.mutations import ROOT, Mutation, Tree, load_mutations, mutated, page

MUTATIONS = load_mutations()
SCHEDULE = "gigpo_mega/learner/schedule.py"


def changed(old: str, new: str) -> Mutation:
    tests = ("tests/learner/test_schedule.py",)
    return Mutation("part", "name", SCHEDULE, old, new, "why", tests)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_the_present_code(mutation: Mutation) -> None:
    """Its line occurs exactly once, what replaces it is Python, and its tests exist."""
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutated(source, mutation))) != ast.dump(ast.parse(source))
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") or not name


def test_names_differ_and_there_are_enough() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 80


def test_a_line_that_is_gone_or_doubled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'name': 'share' occurs 6 times in gigpo_mega/"):
        mutated("share " * 6, changed("share", "part"))


def test_a_wrong_line_is_noticed_and_an_equivalent_one_survives(tmp_path: Path) -> None:
    before = (ROOT / SCHEDULE).read_bytes()
    tree = Tree(tmp_path)
    wrong = tree.mutate(changed("share = 1.0 - progress", "share = progress"))
    assert wrong.killed_by == "tests/learner/test_schedule.py::test_decay_over_updates_ends_at_min_lr"
    assert tree.mutate(changed("share = 1.0 - progress", "share = -progress + 1.0")).killed_by is None
    assert (ROOT / SCHEDULE).read_bytes() == (tmp_path / SCHEDULE).read_bytes() == before


def test_every_mutation_of_the_list_is_recorded_and_noticed() -> None:
    """If this fails, run tools/mutate.py."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    listed = [asdict(mutation) | {"tests": list(mutation.tests)} for mutation in MUTATIONS]
    assert [{field: row[field] for field in listed[0]} for row in record["mutations"]] == listed
    assert [row["name"] for row in record["mutations"] if row["killed_by"] is None] == []
    for row in record["mutations"]:
        file, _, name = row["killed_by"].partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"), row["name"]
    assert PAGE.read_text(encoding="utf-8") == page(record)
