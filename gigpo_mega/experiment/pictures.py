"""The pictures of an experiment: learning curves, differences to the reference, cost and mechanism."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np

from gigpo_mega.experiment.analysis import MECHANISM, SCORES, Record, by_variant, curve, mean_curve
from gigpo_mega.experiment.spec import Spec
from gigpo_mega.experiment.statistics import band
from gigpo_mega.telemetry.report.numbers import smooth

_INK, _SOFT, _RULE = "#1c2330", "#667085", "#e4e7ec"
_COLORS = (
    "#2f6fde",
    "#e07a1f",
    "#2e9e6b",
    "#c2416b",
    "#7b5cd6",
    "#1497a8",
    "#8a6d3b",
    "#c95fd0",
    "#d4a017",
    "#9b2d2d",
)
_SHOWN = tuple(name for name in MECHANISM if not name.startswith(("time/", "memory/")))


def draw(spec: Spec, summary: Mapping[str, Any], records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw the `summary` of `records` as PNGs into `folder`; differences only if there are references."""
    grouped = by_variant(spec, records)
    drawn = {"curves": _curves(spec, grouped)}
    if spec.references:
        drawn["differences"] = _differences(spec, summary)
    drawn |= {"mechanism": _mechanism(grouped), "cost": _cost(summary)}
    paths = [folder / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        figure.savefig(path)
    return paths


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curves(spec: Spec, grouped: Mapping[str, Sequence[Record]]) -> Any:
    """Training success of every variant, in a frame of its own over the reference's of the same seeds."""
    columns = min(len(grouped), 4)
    rows = math.ceil(len(grouped) / columns)
    figure = _figure(2.9 * columns, 2.4 * rows + 0.3)
    frames = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    reference = next(iter(spec.references), "")
    for axes, (name, runs), look in zip(frames, grouped.items(), _looks(len(grouped)), strict=False):
        seeds = {run["seed"] for run in runs}
        below = [run for run in grouped.get(reference, ()) if run["seed"] in seeds]
        if name != reference and below:
            _line(axes, below, {"color": _SOFT}, reference)
        _line(axes, runs, look, name)
        _style(axes, f"{name} ({len(runs)} seed{'s' * (len(runs) != 1)})")
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in frames[len(grouped) :]:
        axes.set_visible(False)
    for axes in frames[max(len(grouped) - columns, 0) : len(grouped)]:  # those with nothing below them
        axes.tick_params(labelbottom=True)
    where = f"iteration (gray: {reference})" if reference in grouped else "iteration"
    figure.supxlabel(where, color=_SOFT, fontsize=9)
    figure.supylabel("success of training episodes, %", color=_SOFT, fontsize=9)
    return figure


def _line(axes: Any, runs: Sequence[Record], look: Mapping[str, str], label: str) -> None:
    raw = curve(runs, "rollout/success")
    window = max(raw.shape[1] // 8, 3) | 1
    mean, low, high = band(np.array([smooth(one, window) for one in raw.tolist()]))
    axes.plot(100 * mean, linewidth=1.8, label=label, **look)
    if len(runs) > 1:
        shade = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(range(len(mean)), 100 * low, 100 * high, **shade)


def _differences(spec: Spec, summary: Mapping[str, Any]) -> Any:
    """Paired differences to the references with their intervals and each seed's, for both scores."""
    count = len(spec.references)
    figure = _figure(10, (0.36 * len(summary["variants"]) + 1.1) * count)
    frames = figure.subplots(count, len(SCORES), sharex="col", squeeze=False)
    for row, reference in zip(frames, spec.references, strict=True):
        for axes, (kind, title) in zip(row, SCORES.items(), strict=True):
            _difference(axes, summary["differences"][kind][reference])
            _style(axes, f"{title}, minus {reference}", grid="x")
    for axes in frames[-1]:
        axes.set_xlabel("points", color=_SOFT)
    return figure


def _difference(axes: Any, found: Mapping[str, Any]) -> None:
    for place, one in enumerate(found.values()):
        color, mean = _COLORS[0] if one["clear"] else _SOFT, one["mean"]
        axes.plot([100 * mean["low"], 100 * mean["high"]], [place, place], color=color, linewidth=2.5)
        axes.plot(100 * mean["value"], place, "o", color=color, markersize=6)
        each = 100 * np.array(list(one["by_seed"].values()))
        axes.plot(each, np.full(len(each), place + 0.22), "|", color=_INK, alpha=0.5, markersize=6)
    axes.axvline(0, color=_INK, linewidth=1)
    axes.set_yticks(range(len(found)), [f"{name} ({one['seeds']})" for name, one in found.items()])
    axes.set_ylim(len(found) - 0.4, -0.6)


def _mechanism(grouped: Mapping[str, Sequence[Record]]) -> Any:
    """What may explain the differences, by iteration."""
    columns = 4
    rows = math.ceil(len(_SHOWN) / columns)
    figure = _figure(3.0 * columns, 2.5 * rows + 0.5)
    frames = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, metric in zip(frames, _SHOWN, strict=False):
        for (name, runs), look in zip(grouped.items(), _looks(len(grouped)), strict=True):
            values = curve(runs, metric)
            if np.isfinite(values).any():
                axes.plot(mean_curve(values), linewidth=1.4, label=name, **look)
        axes.set_ylim(bottom=0)
        _style(axes, MECHANISM[metric])
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in frames[len(_SHOWN) :]:
        axes.set_visible(False)
    handles, labels = frames[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _cost(summary: Mapping[str, Any]) -> Any:
    """Seconds of grouping and advantages in an iteration, and success, of every variant."""
    figure = _figure(10, 0.36 * len(summary["variants"]) + 1.3)
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(summary["variants"])
    # Not of all iterations: the first one pays for imports and caches.
    seconds = [summary["variants"][n]["mechanism"]["time/advantage"]["last"] or 0.0 for n in names]
    success = [summary["variants"][n]["panel"] for n in names]
    left.barh(range(len(names)), [1000 * value for value in seconds], color=_COLORS[0], height=0.6)
    for place, one in enumerate(success):
        right.plot([100 * one["low"], 100 * one["high"]], [place, place], color=_COLORS[0], linewidth=2.5)
        right.plot(100 * one["value"], place, "o", color=_COLORS[0])
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    _style(left, "Grouping and advantages, ms an iteration", grid="x")
    _style(right, "Success on the panel after training, %", grid="x")
    return figure


def _looks(count: int) -> list[dict[str, str]]:
    """Lines that can be told apart: when the colors are used up, dashes of each, then dots."""
    both = product(("-", "--", ":", "-."), _COLORS)
    return [{"color": color, "linestyle": line} for line, color in islice(cycle(both), count)]


def _style(axes: Any, title: str, grid: str = "y") -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=8.5, fontweight="bold")
    axes.grid(axis=grid, color=_RULE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.tick_params(colors=_SOFT, length=0, labelsize=8)
