"""The files of a run folder that the report reads."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gigpo_mega.errors import UserError
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.telemetry.provenance import PROVENANCE

KIND = "rollout/success/"  # before the name of a task type
REFERENCE = "reference.json"  # curves that were recorded elsewhere, to be drawn beside the run's


@dataclass(frozen=True, slots=True)
class Reference:
    """Success of training episodes that a record holds, by iteration; NaN where it has none."""

    estimator: str
    name: str  # with the number of seeds and their commit
    training: list[float]
    kinds: dict[str, list[float]]  # by task type

    @classmethod
    def read(cls, file: Path) -> Reference | None:
        """The curves in `file`, None if it does not exist."""
        if not file.exists():
            return None
        held = json.loads(file.read_text(encoding="utf-8"))
        kinds = {kind: _numbers(values) for kind, values in held["kinds"].items()}
        return cls(held["estimator"], held["name"], _numbers(held["training"]), kinds)

    def at(self, values: list[float], x: list[float]) -> list[float]:
        """`values`, one of the curves, at the iterations `x`; NaN beyond its end."""
        return [values[int(i)] if i < len(values) else math.nan for i in x]


def _numbers(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The contents of a run folder."""

    name: str
    rows: list[dict[str, Any]]  # metrics.jsonl
    evaluations: list[dict[str, Any]]  # evaluation_*.json, by iteration
    records: list[dict[str, Any]]  # episodes.jsonl
    config: str  # config.yaml
    starts: list[dict[str, Any]]  # provenance.jsonl: commit and machine of each start that has iterations
    reference: Reference | None = None  # reference.json, which the quickstart puts there

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        """Read the files that exist; raises UserError if there are neither metrics nor an evaluation."""
        rows = read_rows(folder / "metrics.jsonl")
        paths = folder.glob("evaluation_*.json")
        evaluations = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if not rows and not evaluations:
            raise UserError(
                f"{folder} is not a run folder: it has neither metrics.jsonl nor evaluation_*.json"
            )
        config = folder / "config.yaml"
        return cls(
            name=folder.resolve().name,
            rows=rows,
            evaluations=sorted(evaluations, key=lambda evaluation: evaluation["iteration"]),
            records=read_rows(folder / "episodes.jsonl"),
            config=config.read_text(encoding="utf-8") if config.exists() else "",
            starts=read_rows(folder / PROVENANCE),
            reference=Reference.read(folder / REFERENCE),
        )

    @property
    def ends(self) -> list[dict[str, Any]]:
        """The first and the last evaluation, or the only one."""
        return self.evaluations[:: max(len(self.evaluations) - 1, 1)]

    @property
    def x(self) -> list[float]:
        """Iterations."""
        return [float(row["iteration"]) for row in self.rows]

    @property
    def kinds(self) -> list[str]:
        """Task types of the training episodes."""
        return sorted({name.removeprefix(KIND) for row in self.rows for name in row if name.startswith(KIND)})

    def column(self, name: str) -> list[float]:
        """A metric over the iterations, NaN for rows without it."""
        return [float(row.get(name, math.nan)) for row in self.rows]

    def finite(self, name: str) -> list[float]:
        """The values of a metric that are finite."""
        return [value for value in self.column(name) if math.isfinite(value)]

    def has(self, name: str) -> bool:
        """Whether any row has this metric."""
        return any(name in row for row in self.rows)
