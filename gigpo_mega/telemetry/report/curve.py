"""The learning curve over seeds as a picture, from the JSON that made it (tools/train_seeds.py).

    {"overrides": [], "seeds": [{"seed": 0, "training": [0.31, 0.29, ...],
        "kinds": {"pick_and_place_simple": [0.25, null, ...], ...},
        "before": {"success": 0.30, "standard_error": 0.02}, "after": {...}}, ...]}

`training` is the success rate of each iteration's episodes, `kinds` the same by task type (older records have
none), `before` and `after` the fixed held-out panel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gigpo_mega.telemetry.report.numbers import smooth

_INK, _SOFT, _RULE = "#1c2330", "#667085", "#e4e7ec"
_LINE, _BEFORE, _OTHER = "#2f6fde", "#b4bccb", "#e07b26"
_KINDS = ("#12967f", "#8b5fd6", "#d1495b", "#b08900", "#3b9dc4", "#6b7280")
_ESTIMATOR = "--advantage.estimator"


@dataclass(frozen=True, slots=True)
class Seeds:
    """The runs of one record, and the estimator that they learned by."""

    name: str
    runs: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, source: Path) -> Seeds:
        """The record in `source`."""
        return cls.of(json.loads(source.read_text(encoding="utf-8")))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Seeds:
        """The runs of `record`; GiGPO unless its overrides name another estimator."""
        overrides = list(record.get("overrides", []))
        named = overrides[overrides.index(_ESTIMATOR) + 1] if _ESTIMATOR in overrides else "gigpo"
        return cls("GiGPO" if named == "gigpo" else named.upper(), record["seeds"])

    @property
    def curves(self) -> np.ndarray:
        """Success of the training episodes. `[seeds, iterations]`."""
        return _aligned([run["training"] for run in self.runs])

    @property
    def kinds(self) -> dict[str, np.ndarray]:
        """The same by task type, NaN where an iteration has none of it; empty for an older record."""
        names = sorted(set[str]().union(*(run.get("kinds", {}) for run in self.runs)))
        return {name: _aligned([run["kinds"][name] for run in self.runs]) for name in names}

    @property
    def counted(self) -> str:
        """E.g. `mean of 3 seeds`."""
        count = len(self.runs)
        return f"mean of {count} seeds" if count > 1 else f"seed {self.runs[0]['seed']}"


def reference(record: Mapping[str, Any]) -> dict[str, Any]:
    """The mean curves of a record, as the quickstart's report draws them beside a run (`reference.json`)."""
    seeds = Seeds.of(record)
    commits = ", ".join(sorted({run["commit"][:7] for run in seeds.runs}))
    kinds = {name: _listed(_mean(curves)) for name, curves in seeds.kinds.items()}
    name = f"{seeds.name}, {seeds.counted}, recorded at {commits}"
    return {"estimator": seeds.name, "name": name, "training": _listed(_mean(seeds.curves)), "kinds": kinds}


def plot_seeds(source: Path, picture: Path, beside: Path | None = None) -> None:
    """Draw `source` into the PNG `picture`; `beside`, a second record, is drawn in another color.

    Training curves, beside them those of the task types if they are known, and the panel before and after.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [Seeds.read(file) for file in (source, beside) if file]
    tall = bool(records[0].kinds)
    figure = Figure(figsize=(10, 7.4 if tall else 3.9), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    widths, heights = ([1.0, 1.0], [1.2, 1.0]) if tall else ([1.45, 1.0], [1.0])
    axes = figure.subplot_mosaic("ct;pp" if tall else "cp", sharey=True, width_ratios=widths,
                                 height_ratios=heights)  # fmt: skip
    drawn = {"c": _curves, "t": _types, "p": _panel}
    highest = [drawn[name](part, records) for name, part in axes.items()]
    axes["p"].set_ylim(0, max(*highest, 1.0) * 1.16)  # leaves space for the legend; all share this axis
    figure.savefig(picture)


def _curves(axes: Any, records: Sequence[Seeds]) -> float:
    """Smoothed training success of every seed, thin, and their mean, bold; returns the highest point."""
    window = _window(records[0])
    highest = 0.0
    for seeds, color in zip(records, (_LINE, _OTHER), strict=False):
        lines = 100 * _smooth(seeds.curves, window)
        for line in lines:
            axes.plot(line, color=color, alpha=0.3, linewidth=1)
        label = f"{seeds.name}, {seeds.counted}"
        axes.plot(_mean(lines), color=color, linewidth=2.5, label=label)
        highest = max(highest, float(lines.max()))
    axes.legend(loc="lower right", frameon=False, labelcolor=_INK)
    _style(axes, f"Training episodes (mean of {window} iterations)")
    axes.set_xlabel("iteration", color=_SOFT)
    axes.set_ylabel("success rate, %", color=_SOFT)
    return highest


def _types(axes: Any, records: Sequence[Seeds]) -> float:
    """The mean curve of each task type, a second record's dashed; returns the highest point."""
    window, highest = _window(records[0]), 0.0
    for seeds, style in zip(records, ("-", "--"), strict=False):
        for (name, curves), color in zip(seeds.kinds.items(), _KINDS, strict=False):
            line = 100 * _mean(_smooth(curves, window))
            label = f"{name.replace('_', ' ')}, {seeds.name}"
            axes.plot(line, color=color, linestyle=style, linewidth=2, label=label)
            highest = max(highest, float(np.nanmax(line)))
    axes.legend(loc="lower right", frameon=False, labelcolor=_INK, fontsize=9)
    _style(axes, "By task type")
    axes.set_xlabel("iteration", color=_SOFT)
    return highest


def _panel(axes: Any, records: Sequence[Seeds]) -> float:
    """Bars of each seed with the panel's standard error, and their mean; returns the highest point.

    A second record has the same start, so of it only the end is drawn.
    """
    first = records[0]
    bars = [("before", first, "before", _BEFORE), (f"after {first.name}", first, "after", _LINE)]
    bars += [(f"after {other.name}", other, "after", _OTHER) for other in records[1:]]
    names = [*(str(run["seed"]) for run in first.runs), "mean"]
    places = np.append(np.arange(len(first.runs)), len(first.runs) + 0.4)
    width, highest = 0.76 / len(bars), 0.0
    for number, (label, seeds, side, color) in enumerate(bars):
        of = {str(run["seed"]): run[side] for run in seeds.runs}
        heights = np.array([100 * of[name]["success"] if name in of else math.nan for name in names])
        heights[-1] = 100 * np.mean([panel["success"] for panel in of.values()])
        errors = [100 * of[name]["standard_error"] if name in of else math.nan for name in names]
        shift = (number - (len(bars) - 1) / 2) * width
        axes.bar(places + shift, heights, width=width, color=color, label=label, yerr=errors,
                 error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 2})
        highest = max(highest, float(np.nanmax(heights + np.nan_to_num(errors))))
    start, end = (np.mean([run[side]["success"] for run in first.runs]) for side in ("before", "after"))
    axes.annotate(f"{100 * (end - start):+.1f}", (places[-1] + (1 - (len(bars) - 1) / 2) * width, 100 * end),
                  ha="center", va="bottom", color=_INK, fontweight="bold", xytext=(0, 3),
                  textcoords="offset points")
    axes.set_xticks(places, names)
    axes.set_xlabel("seed", color=_SOFT)
    axes.legend(loc="upper left", ncols=len(bars), frameon=False, labelcolor=_INK, columnspacing=1,
                fontsize=10 if len(bars) == 2 else 8)
    _style(axes, "Held-out panel (standard error)")
    return highest


def _window(seeds: Seeds) -> int:
    return max(seeds.curves.shape[1] // 8, 5) | 1


def _aligned(curves: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Curves of one length, the shortest, with NaN for None."""
    length = min(map(len, curves))
    return np.array([curve[:length] for curve in curves], dtype=float)


def _smooth(curves: np.ndarray, window: int) -> np.ndarray:
    return np.array([smooth(curve, window) for curve in curves.tolist()])


def _mean(curves: np.ndarray) -> np.ndarray:
    """The mean over seeds of those that have a value; NaN if none has."""
    held = np.isfinite(curves)
    count = held.sum(axis=0)
    total = np.where(held, curves, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _listed(curve: np.ndarray) -> list[float | None]:
    """A curve for JSON, which has no NaN."""
    return [round(value, 4) if math.isfinite(value) else None for value in curve.tolist()]


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=_RULE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.tick_params(colors=_SOFT, length=0)
