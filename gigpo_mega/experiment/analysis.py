"""From the records of an experiment to its summary: means, paired differences, and what drives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gigpo_mega.errors import UserError
from gigpo_mega.experiment.spec import COLDSTART, Spec
from gigpo_mega.experiment.statistics import compare, deviation, mean_interval, power
from gigpo_mega.types import Float64

Record = Mapping[str, Any]

# Of every run a score: the panel after it (primary), and all of its training episodes (how fast it learned).
SCORES = {"panel": "success on the panel after training", "training": "mean success of the training episodes"}
MECHANISM = {
    "rollout/length": "steps of an episode",
    "rollout/invalid": "share of invalid actions",
    "loss/entropy": "entropy per token, nats",
    "anchor/mean_size": "steps of an anchor group",
    "anchor/singletons": "share of steps alone in their anchor group",
    "anchor/size_8_plus": "share in anchor groups of 8 or more",
    "advantage/episode_abs": "mean size of A_E",
    "advantage/step_abs": "mean size of A_S",
    "advantage/step_nonzero": "share of steps with a non-zero A_S",
    "advantage/nonzero": "share of steps that train",
    "time/advantage": "seconds of grouping and advantages",
    "time/total": "seconds of an iteration",
    "memory/learner_gib": "GiB of the learner",
}


def analyze(spec: Spec, records: Sequence[Record]) -> dict[str, Any]:
    """The summary of `records`, which need not be complete; raises UserError if there is no run."""
    runs = [record for record in records if record["variant"] != COLDSTART]
    if not runs:
        raise UserError("the store has no runs yet; run the experiment without --analyze")
    grouped = by_variant(spec, runs)
    differences: dict[str, Any] = {}
    detectable: dict[str, Any] = {}
    for kind in SCORES:
        scores = {name: {run["seed"]: score(run, kind) for run in of} for name, of in grouped.items()}
        differences[kind] = {reference: _differences(scores, reference) for reference in spec.references}
        detectable[kind] = _power(spec, scores)
    commits = Counter(attempt["commit"] for record in runs for attempt in record["attempts"])
    count = Counter(record["seed"] for record in runs)
    return {
        "runs": len(runs),
        "planned": len(spec.seeds) * len(spec.variants),
        "complete_seeds": [seed for seed in spec.seeds if count[seed] == len(spec.variants)],
        "iterations": max(len(record["curves"]["rollout/success"]) for record in runs),
        "commits": dict(commits.most_common()),
        "devices": sorted({record["device"] for record in runs}),
        "coldstarts": {str(r["seed"]): r["before"]["success"] for r in records if r["variant"] == COLDSTART},
        "variants": {name: _variant(members) for name, members in grouped.items()},
        "differences": differences,
        "power": detectable,
    }


def by_variant(spec: Spec, records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of every variant that has any, in the spec's order."""
    grouped = {name: [record for record in records if record["variant"] == name] for name in spec.variants}
    return {name: members for name, members in grouped.items() if members}


def score(record: Record, kind: str) -> float:
    """A run's score of the given kind, a share."""
    if kind == "panel":
        return record["after"]["success"]
    played = [success for success in record["curves"]["rollout/success"] if success is not None]
    return float(np.mean(played))


def curve(records: Sequence[Record], metric: str) -> Float64:
    """A metric of runs of one variant, [S, T]; NaN if a run has no value."""
    columns = [record["curves"].get(metric, []) for record in records]
    length = max(map(len, columns))
    filled = [[*column, *[None] * (length - len(column))] for column in columns]
    return np.array([[np.nan if v is None else v for v in column] for column in filled], dtype=np.float64)


def mean_curve(values: Float64) -> Float64:
    """The mean over seeds of `values` [S, T] at every iteration, [T]; NaN where no seed has a value."""
    there = np.isfinite(values)
    count = there.sum(axis=0)
    return np.where(count, np.where(there, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _variant(runs: Sequence[Record]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": [record["seed"] for record in runs]}
    found["before"] = _mean([record["before"]["success"] for record in runs if record["before"]])
    found["groups"] = _mean([_groups_played(record) for record in runs])
    for kind in SCORES:
        scores = np.array([score(record, kind) for record in runs])
        interval = asdict(mean_interval(scores))
        found[kind] = {**interval, "deviation": deviation(scores.tolist()), "scores": scores.tolist()}
    kinds = [record["after"]["kinds"] for record in runs]
    found["kinds"] = {
        kind: _mean([of[kind]["success"] for of in kinds if kind in of])
        for kind in dict.fromkeys(kind for of in kinds for kind in of)
    }
    found["mechanism"] = {metric: _ends(curve(runs, metric)) for metric in MECHANISM}
    return found


def _groups_played(record: Record) -> float:
    """The groups of all iterations of a run, with those in whose place others were played."""
    config, curves = record["config"], record["curves"]
    refused, spares = curves.get("rollout/groups_replaced", ()), config.get("rollout.spare_groups", 0)
    replaced = sum(min(count or 0, spares) for count in refused)  # past the spares nothing was played instead
    return config["rollout.groups"] * len(curves["rollout/success"]) + replaced


def _ends(values: Float64) -> dict[str, float | None]:
    """The mean over seeds of the first iteration, of the last quarter, and of all."""
    quarter = max(values.shape[1] // 4, 1) if values.size else 0
    parts = {"first": values[:, :1], "last": values[:, -quarter:], "all": values}
    return {name: _mean(part[np.isfinite(part)].tolist()) for name, part in parts.items()}


def _differences(scores: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, Any]:
    """Every other variant minus the reference, on the seeds that both have."""
    found: dict[str, Any] = {}
    theirs = scores.get(reference, {})
    for name, ours in scores.items():
        common = sorted(ours.keys() & theirs.keys())
        if common and name != reference:
            one = compare(*(np.array([side[seed] for seed in common]) for side in (ours, theirs)))
            each = {str(seed): ours[seed] - theirs[seed] for seed in common}
            found[name] = {**asdict(one), "clear": one.clear, "by_seed": each}
    return found


def _power(spec: Spec, scores: Mapping[str, Mapping[int, float]]) -> dict[str, list[dict[str, Any]]]:
    """What experiments of `spec.power_for` seeds could show, by the spread of every variant's scores.

    Differences of independent runs deviate by sqrt(2) times what the runs do; pairing should lower that.
    """
    spreads = {variant: deviation(list(found.values())) for variant, found in scores.items()}
    return {
        variant: [asdict(power(2**0.5 * spread, seeds)) for seeds in spec.power_for]
        for variant, spread in spreads.items()
        if spread
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
