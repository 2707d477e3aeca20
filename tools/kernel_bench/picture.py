"""The record as a picture: the roofline with every implementation on it, and its fraction of the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.lines import Line2D

mpl.use("Agg")

from matplotlib import pyplot

COLORS = {
    "ours (triton)": "#0b6e4f", "ours (fused)": "#0b6e4f", "ours (chunked)": "#3da35d",
    "ours (numpy)": "#3da35d", "ours (reference)": "#96d1a5",
}  # fmt: skip
OTHERS = ("#3b528b", "#c8553d", "#8d6a9f", "#e09f3e", "#6c757d", "#5aa9e6", "#9e2a2b")


def draw(record: dict[str, Any], path: Path) -> None:
    """Write a PNG of `tools/bench_kernels.py`'s record."""
    done = [r for r in record["results"] if r["seconds"] is not None]
    names = list(dict.fromkeys(r["implementation"] for r in done))
    others = [name for name in names if name not in COLORS]
    colors = COLORS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    height = max(4.5, 0.9 + 0.22 * len(done))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, height), layout="constrained")
    _roofline(left, record["roofline"], done, colors)
    _fractions(right, done, colors)
    handles = [Line2D([], [], marker="o", ls="", color=colors[name], label=name) for name in names]
    left.legend(handles=handles, fontsize=8, loc="lower right", framealpha=0.9)
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    quick = ", quick" if record["quick"] else ""
    figure.suptitle(f"{record['device']}   (commit {record['commit']}{quick}; {packages})", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _roofline(axes: Any, roof: dict[str, Any], done: list[dict[str, Any]], colors: dict[str, str]) -> None:
    intensity = [r["flops"] / r["moved"] for r in done] or [1.0]
    ridge = roof["flops"] / roof["bytes"]
    low, high = min([*intensity, ridge]) / 4, max([*intensity, ridge]) * 4
    edges = [low, ridge, high]
    axes.plot(edges, [min(x * roof["bytes"], roof["flops"]) for x in edges], color="black", lw=1.2)
    product = f"{roof['flops'] / 1e9:,.0f} GFLOP/s ({roof['product']})"
    axes.text(high, roof["flops"] * 1.15, product, ha="right", fontsize=8)
    axes.text(low * 1.2, low * roof["bytes"] * 4, f"{roof['bytes'] / 1e9:,.3g} GB/s (copy)", fontsize=8)
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for r in done:
        x, y = r["flops"] / r["moved"], r["flops"] / r["seconds"]["median"]
        axes.scatter(x, y, color=colors[r["implementation"]], s=26, zorder=3)
        key = (r["op"], r["shape"])
        best[key] = max(best.get(key, (x, y)), (x, y))
    for (op, _), (x, y) in best.items():
        axes.annotate(op, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set(xlabel="least operations per byte", ylabel="operations per second")
    axes.set_title("roofline measured in the same run", fontsize=10)
    axes.grid(alpha=0.25, which="both", lw=0.4)


def _fractions(axes: Any, done: list[dict[str, Any]], colors: dict[str, str]) -> None:
    labels = [f"{r['op']} {r['shape']}  {r['implementation']}" for r in done]
    places = list(range(len(done)))
    fills = [colors[r["implementation"]] for r in done]
    axes.barh(places, [r["fraction"] for r in done], color=fills, height=0.75)
    for place, r in zip(places, done, strict=True):
        axes.text(r["fraction"] + 0.01, place, _time(r["seconds"]["median"]), va="center", fontsize=6.5)
    axes.set_yticks(places, labels, fontsize=6.5)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", lw=0.8)
    axes.set_xlim(0, max(1.15, *(r["fraction"] + 0.12 for r in done), 0))
    axes.set_title("fraction of the floor, and the median", fontsize=10)
    axes.set_xlabel("floor / time")


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
