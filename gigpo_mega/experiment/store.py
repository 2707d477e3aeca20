"""The store of an experiment: a JSON file for every run, which may be of different days and commits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gigpo_mega.config import Config
from gigpo_mega.config.core_yaml import leaves, read
from gigpo_mega.config.load import config_values
from gigpo_mega.errors import UserError
from gigpo_mega.experiment.jobs import Job
from gigpo_mega.experiment.runner import attempts
from gigpo_mega.experiment.spec import COLDSTART, Spec
from gigpo_mega.storage.files import replace_text
from gigpo_mega.telemetry.metrics import read_rows

_LEFT_OUT = (
    "iteration", "engine/requests_min", "engine/requests_max", "engine/moves", "engine/lost", "optimizer/lr",
    "optimizer/updates", "time/push", "time/evaluate", "update/rows",
)  # fmt: skip
_OF_THE_LAUNCH = ("output", "resume", "stack")
_OWN_FIELDS = ("seed", "model.path")  # in which the runs of a variant differ
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of records."""

    folder: Path

    def path(self, job: Job) -> Path:
        """Where the record of a run or of a cold start's panel lies."""
        return self._path(job.variant, job.seed)

    def panel_before(self, spec: Spec, seed: int) -> dict[str, Any] | None:
        """What the policy that the runs of `seed` begin with did on the panel, if it was a cold start's.

        Its record is there even where the cold start was made again for a run that was added later.
        """
        path = self._path(COLDSTART, spec.coldstart_seed(seed))
        return _read(path)["before"] if spec.coldstart is not None and path.exists() else None

    def write(self, job: Job, record: Mapping[str, Any]) -> None:
        """Keep a record: a line for each of its fields."""
        path = self.path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
        replace_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    def read(self, spec: Spec) -> list[dict[str, Any]]:
        """The records of runs and cold starts of `spec`, by variant and seed.

        Raises UserError for one that was told otherwise than `spec` says.
        """
        files = sorted((self.folder / "records").glob("*.json"))
        records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        ours = [record for record in records if spec.has(record["variant"], record["seed"])]
        _check_told(spec, ours)
        return sorted(ours, key=lambda record: (record["variant"], record["seed"]))

    def _path(self, variant: str, seed: int) -> Path:
        return self.folder / "records" / f"{variant}_{seed}.json"


def record_of(job: Job, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is kept of a run that has ended; `before` is its starting policy's panel if it played none."""
    own = job.folder / "evaluation_000000.json"
    rows = read_rows(job.folder / "metrics.jsonl")
    return {
        **_circumstances(job),
        "config": _config(job.folder),
        "before": _read(own) if own.exists() else before,
        "after": _read(job.result),
        "curves": curves(rows),
    }


def coldstart_record(job: Job, clone: Path) -> dict[str, Any]:
    """What is kept of a cold start and of the panel of its policy (`job`)."""
    return {
        **_circumstances(job),
        "config": _config(clone),
        "before": _read(job.result),
        "seconds": [attempt.get("seconds") for attempt in attempts(clone)],
    }


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """The metrics of a run by name, a value for every iteration, None if it is missing or not finite."""
    names = {name: None for row in rows for name in row if not name.startswith(_LEFT_OUT)}
    return {name: [_rounded(row.get(name)) for row in rows] for name in names}


def flat(config: Config) -> dict[str, Any]:
    """The values of all fields of `config`, by path."""
    return dict(leaves(config_values(config)))


def _check_told(spec: Spec, records: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError if a run has fields of other values than the experiment, seed and paths apart.

    A field that a record lacks is newer than it, and counts only if the experiment sets it.
    """
    values = {name: flat(spec.config(name)) for name in {record["variant"] for record in records}}
    for record in records:
        name, config = record["variant"], record["config"]
        compared = (values[name].keys() & config.keys()) | dict(leaves(spec.settings_of(name))).keys()
        for field in sorted(compared.difference(_OWN_FIELDS, _OF_THE_LAUNCH)):
            had, wanted = config.get(field), values[name].get(field)
            if not _same(had, wanted):
                raise UserError(
                    f"{name}, seed {record['seed']}, was made with {field} {had}, and the experiment says "
                    f"{wanted}; move its record out of the store, or change it back"
                )


def _same(had: Any, wanted: Any) -> bool:
    """Whether they are equal, or paths of which the record leaves out the folder of the runs."""
    return had == wanted or (isinstance(had, str) and f"/{wanted}".endswith(f"/{had}"))


def _circumstances(job: Job) -> dict[str, Any]:
    *earlier, last = attempts(job.folder)
    tries = [{name: one.get(name) for name in ("commit", "seconds", "status")} for one in (*earlier, last)]
    named = {name: last[name] for name in ("commit", "device", "versions", "load_average")}
    return {"variant": job.variant, "seed": job.seed, **named, "attempts": tries}


def _config(folder: Path) -> dict[str, Any]:
    """What a run was told, launch apart; its folder of runs is of no use to a reader."""
    values = dict(leaves(read(folder / "config.yaml")))
    within = f"{folder.parent}/"
    return {
        name: value.removeprefix(within) if isinstance(value, str) else value
        for name, value in values.items()
        if name not in _OF_THE_LAUNCH
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")
