"""The learning curve over seeds as a picture, from the JSON that made it.

    {"seeds": [{"seed": 0, "training": [0.31, 0.29, ...],
                "before": {"success": 0.30, "standard_error": 0.02}, "after": {...}}, ...]}

`training` is the success rate of each iteration's episodes, `before` and `after` the fixed held-out panel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gigpo_mega.telemetry.report import smooth

_INK, _SOFT, _RULE = "#1c2330", "#667085", "#e4e7ec"
_LINE, _BEFORE = "#2f6fde", "#b4bccb"


def plot_seeds(source: Path, picture: Path) -> None:
    """Draw `source` into the PNG `picture`: training curves left, the panel before and after right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seeds = json.loads(source.read_text(encoding="utf-8"))["seeds"]
    figure = Figure(figsize=(10, 3.9), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    curves, panel = figure.subplots(1, 2, width_ratios=[1.45, 1], sharey=True)
    highest = max(_curves(curves, seeds), _panel(panel, seeds))
    panel.set_ylim(0, highest * 1.16)  # room for the legend; both sides share this axis
    figure.savefig(picture)


def _curves(axes: Any, seeds: Sequence[Mapping[str, Any]]) -> float:
    """Smoothed training success of every seed, thin, and their mean, bold; returns the highest point."""
    length = min(len(seed["training"]) for seed in seeds)
    window = max(length // 8, 5) | 1
    lines = np.array([smooth(seed["training"][:length], window) for seed in seeds])
    for line in lines:
        axes.plot(100 * line, color=_LINE, alpha=0.3, linewidth=1)
    label = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]['seed']}"
    axes.plot(100 * lines.mean(axis=0), color=_LINE, linewidth=2.5, label=label)
    axes.legend(loc="lower right", frameon=False, labelcolor=_INK)
    _style(axes, f"Training episodes (mean of {window} iterations)")
    axes.set_xlabel("iteration", color=_SOFT)
    axes.set_ylabel("success rate, %", color=_SOFT)
    return float(100 * lines.max())


def _panel(axes: Any, seeds: Sequence[Mapping[str, Any]]) -> float:
    """Two bars per seed with the standard error of the panel, and their mean; returns the highest point."""
    before = 100 * np.array([seed["before"]["success"] for seed in seeds])
    after = 100 * np.array([seed["after"]["success"] for seed in seeds])
    places = np.append(np.arange(len(seeds)), len(seeds) + 0.4)
    highest = 0.0
    for shift, side, values, colour in ((-0.2, "before", before, _BEFORE), (0.2, "after", after, _LINE)):
        errors = np.array([100 * seed[side]["standard_error"] for seed in seeds] + [np.nan])
        heights = np.append(values, values.mean())
        axes.bar(places + shift, heights, width=0.38, color=colour, label=f"{side} GiGPO", yerr=errors,
                 error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 2})
        highest = max(highest, float(np.nanmax(heights + errors)))
    top = float(after.mean())
    axes.annotate(f"{top - before.mean():+.1f}", (places[-1] + 0.2, top), ha="center", va="bottom",
                  color=_INK, fontweight="bold", xytext=(0, 3), textcoords="offset points")
    axes.set_xticks(places, [*(str(seed["seed"]) for seed in seeds), "mean"])
    axes.set_xlabel("seed", color=_SOFT)
    axes.legend(loc="upper left", ncols=2, frameon=False, labelcolor=_INK)
    _style(axes, "Held-out panel (standard error)")
    return highest


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=_RULE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.tick_params(colors=_SOFT, length=0)
