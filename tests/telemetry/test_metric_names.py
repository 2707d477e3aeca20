"""docs/metrics.md names every metric that the package writes, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gigpo_mega.telemetry.metrics import MetricsWriter

ROOT = Path(__file__).parents[2]
SECTIONS = "loss|optimizer|engine|update|rollout|advantage|anchor|memory|weights|staleness|time|evaluation"
PAGE = (ROOT / "docs/metrics.md").read_text().partition("## Names")[2]
CELLS = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `")]
NAMED = {name for cell in CELLS for name in re.findall(rf"`((?:{SECTIONS})/[\w/]+)`", cell)}
SOURCE = "\n".join(path.read_text() for path in (ROOT / "gigpo_mega").rglob("*.py"))
MADE_OF_PARTS = {
    "rollout/success/{kind}": ["rollout/success/KIND"],
    "staleness/share_{k}": ["staleness/share_K"],
    "staleness/logprob_gap_{age}": ["staleness/logprob_gap_K"],
    "anchor/size_{k}": [f"anchor/size_{k}" for k in ("1", "2_3", "4_7", "8_plus")],
    "time/{name}": [],  # reads them
    "time/{stage.name}": [f"time/{name}" for name in re.findall(r'\.stage\("(\w+)"\)', SOURCE)],
}


class FakeLogger:
    """Keeps the names that it was given."""

    names: frozenset[str] = frozenset()

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self.names |= values.keys()

    def close(self) -> None: ...


def evaluation_names(folder: Path) -> list[str]:
    """What the loggers get of an evaluation."""
    numbers = dict.fromkeys(("success", "standard_error", "score", "length", "invalid"), 0.0)
    writer = MetricsWriter(folder, [logger := FakeLogger()])
    writer.evaluated({"iteration": 0, "kinds": {"KIND": {"success": 0.0}}, **numbers})
    writer.close()
    return sorted(logger.names)


def unnamed(metrics: Iterable[str]) -> list[str]:
    """Those of a run's metrics that the page does not name."""
    patterns = [re.sub(r"KIND$", ".+", re.sub(r"_K$", r"_\\d+", name)) for name in NAMED]
    return [name for name in metrics if not any(re.fullmatch(pattern, name) for pattern in patterns)]


def test_the_page_names_every_metric_and_no_other(tmp_path: Path) -> None:
    parts = MADE_OF_PARTS | {"evaluation/{name}": evaluation_names(tmp_path)}
    assert set(re.findall(rf'f"((?:{SECTIONS})/[^" ]+)"', SOURCE)) == parts.keys()
    written = {name for names in parts.values() for name in names}
    written |= set(re.findall(rf'"((?:{SECTIONS})/\w+)"', SOURCE))
    assert NAMED - written == set()
    assert written - NAMED - {"loss/action", "loss/action_tokens"} == set()  # of a cold start


def test_a_name_that_the_page_does_not_have_is_noticed() -> None:
    fine = {"rollout/success/look at", "staleness/share_1", "anchor/size_2_3", "time/evaluate"}
    assert unnamed([*sorted(fine), "time/evaluation", "staleness/share", "loss"]) == [
        "time/evaluation", "staleness/share", "loss",
    ]  # fmt: skip
