"""The notebook runs from top to bottom on the run beside it, and holds no outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/notebooks/advantages.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, Any]]:
    """The names that its cells leave, run in its folder; `said` is what they print."""
    matplotlib.use("Agg")
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict[str, Any] = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    yield names | {"said": capsys.readouterr().out}
    names["plt"].close("all")


def test_the_notebook_says_what_the_run_holds(ran: dict[str, Any]) -> None:
    rows, found = ran["rows"], ran["found"]
    assert len(ran["groups"]) == 4
    assert ran["said"].count("\n") == 4 + 3
    assert ran["best"] in ran["wins"]
    assert len(set(found.episode[ran["at"]].tolist())) == 1
    assert np.any(found.step[ran["at"]] != 0)
    assert len(ran["plt"].get_fignums()) == 3
    # Each step of the group is in one arrow, and leaves the state that it is compared in.
    assert sorted(row for taken in ran["arrows"].values() for row in taken) == sorted(
        np.flatnonzero(rows.group == ran["shown"])
    )
    assert sum(ran["visits"].values()) == np.sum(rows.group == ran["shown"])
    assert len(ran["visits"]) == len(set(found.step_group[rows.group == ran["shown"]].tolist()))


def test_another_estimator_gives_some_steps_other_advantages(ran: dict[str, Any]) -> None:
    assert not np.allclose(ran["grpo"].total, ran["found"].total)
    assert np.allclose(ran["grpo"].total, ran["found"].episode, atol=1e-6)
    assert 0 < np.mean(ran["moved"] > 1e-6) < 1


def test_outputs_are_stripped_and_the_recorded_run_is_small() -> None:
    assert [cell["id"] for cell in CELLS if cell.get("outputs") or cell.get("execution_count")] == []
    sizes = [path.stat().st_size for path in NOTEBOOK.parent.rglob("*") if path.is_file()]
    assert sum(sizes) < 250_000
