"""The benchmark record as a picture: the roofline with every implementation, and fractions of the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLORS = {
    "ours (triton)": "#0b6e4f", "ours (fused)": "#0b6e4f", "ours (chunked)": "#3da35d",
    "ours (numpy)": "#3da35d", "ours (reference)": "#96d1a5",
}  # fmt: skip
OTHERS = ("#3b528b", "#c8553d", "#8d6a9f", "#e09f3e", "#6c757d", "#5aa9e6", "#9e2a2b", "#f2a6b3", "#222222")


def draw(record: dict[str, Any], path: Path) -> None:
    """Write a PNG of the record that `gigpo-mega bench-kernels` makes."""
    done = [r for r in record["results"] if r["seconds"] is not None]
    names = list(dict.fromkeys(r["implementation"] for r in done))
    others = [name for name in names if name not in COLORS]
    colors = COLORS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    cases = len({(r["op"], r["shape"]) for r in done})
    height = max(4.5, 1.0 + 0.2 * (len(done) + cases))
    figure = Figure(figsize=(13, height), layout="constrained")
    FigureCanvasAgg(figure)  # pyplot would look for a display, and for IPython
    left, right = figure.subplots(1, 2)
    _roofline(left, record["roofline"], done, colors)
    _fractions(right, done, colors)
    handles = [Line2D([], [], marker="o", ls="", color=colors[name], label=name) for name in names]
    left.legend(handles=handles, fontsize=8, loc="lower right", framealpha=0.9)
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    quick = ", quick" if record["quick"] else ""
    figure.suptitle(f"{record['device']}   (commit {record['commit']}{quick}; {packages})", fontsize=9)
    figure.savefig(path, dpi=110)


def _roofline(axes: Any, roof: dict[str, Any], done: list[dict[str, Any]], colors: dict[str, str]) -> None:
    intensity = [r["flops"] / r["moved"] for r in done] or [1.0]
    ridge = roof["flops"] / roof["bytes"]
    low, high = min([*intensity, ridge]) / 4, max([*intensity, ridge]) * 4
    edges = [low, ridge, high]
    axes.plot(edges, [min(x * roof["bytes"], roof["flops"]) for x in edges], color="black", lw=1.2)
    limits = f"{roof['flops'] / 1e9:,.0f} GFLOP/s, a product of {roof['product']}\n" \
             f"{roof['bytes'] / 1e9:,.3g} GB/s, a copy of {roof['copy']}"  # fmt: skip
    axes.text(0.02, 0.98, limits, transform=axes.transAxes, va="top", fontsize=8)
    best: dict[str, tuple[float, float]] = {}
    for r in done:
        x, y = r["flops"] / r["moved"], r["flops"] / r["seconds"]["median"]
        axes.scatter(x, y, color=colors[r["implementation"]], s=26, zorder=3)
        best[r["op"]] = max(best.get(r["op"], (x, y)), (x, y), key=lambda point: point[1])
    for op, (x, y) in best.items():
        if x > ridge:  # those of the head are close together
            axes.text(x, roof["flops"] * 1.3, op, fontsize=8, rotation=90, ha="center", va="bottom")
        else:
            axes.annotate(op, (x, y), textcoords="offset points", xytext=(7, -3), fontsize=8)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_ylim(top=roof["flops"] * 30)
    axes.set(xlabel="least operations per byte", ylabel="operations per second")
    axes.set_title("roofline measured in the same run", fontsize=10)
    axes.grid(alpha=0.25, lw=0.4)


def _fractions(axes: Any, done: list[dict[str, Any]], colors: dict[str, str]) -> None:
    places: list[float] = []
    place, previous = 0.0, ""
    for r in done:
        case = f"{r['op']}   {r['shape']}"
        if case != previous:
            place += 1.1
            axes.text(0.0, place - 0.1, case, fontsize=8, weight="bold", va="center")
        place, previous = place + 1.0, case
        places.append(place)
    fills = [colors[r["implementation"]] for r in done]
    axes.barh(places, [r["fraction"] for r in done], color=fills, height=0.75)
    for place, r in zip(places, done, strict=True):
        text = f"{r['fraction']:.1%}   {_time(r['seconds']['median'])}"
        axes.text(r["fraction"] + 0.01, place, text, va="center", fontsize=7)
    axes.set_yticks(places, [r["implementation"] for r in done], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", lw=0.8)
    axes.set_xlim(0, max(1.15, *(r["fraction"] + 0.25 for r in done), 0))
    axes.set_title("fraction of the floor, and the median", fontsize=10)
    axes.set_xlabel("floor / time   (above 1: kept the logits that the floor computes twice)")


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
