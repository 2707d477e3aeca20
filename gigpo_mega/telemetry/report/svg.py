"""Small charts as inline SVG; strokes and text take their colors from the page, in light and dark mode.

Every iteration has an invisible column over the plot whose tooltip lists its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from gigpo_mega.telemetry.report.frame import BOTTOM, LEFT, RIGHT, TOP, Frame, drawable, fit, ticks

Format = Callable[[float], str]

_COLUMNS = 240  # tooltip columns at most


@dataclass(frozen=True, slots=True)
class Series:
    """One line or band; `values` are aligned with the x of the chart, NaN if missing."""

    name: str
    values: Sequence[float]
    color: int  # index in the palette of the page
    faint: bool = False
    dashed: bool = False

    def line(self, frame: Frame, x: Sequence[float]) -> str:
        """A line through the values that can be drawn, or a dot for a single one."""
        pairs = zip(x, self.values, strict=True)
        points = [(frame.x(a), frame.y(b)) for a, b in pairs if frame.shows(b)]
        kind = "line" + " faint" * self.faint + " dashed" * self.dashed
        color = f"var(--c{self.color})"
        if len(points) == 1:
            (a, b), = points
            return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" style="fill:{color}"/>'
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        return f'<polyline class="{kind}" style="stroke:{color}" points="{path}"/>'

    def band(self, frame: Frame, x: Sequence[float], base: Sequence[float], top: Sequence[float]) -> str:
        """The area between `base` and `top`."""
        if len(x) == 1:
            a, b, low, high = frame.x_range[0], frame.x_range[1], base[0], top[0]
            corners = [(a, low), (a, high), (b, high), (b, low)]
        else:
            corners = [*zip(x, top, strict=True), *reversed(list(zip(x, base, strict=True)))]
        path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in corners)
        return f'<polygon class="band" style="fill:var(--c{self.color})" points="{path}"/>'


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with its standard error, drawn over the lines."""

    x: float
    y: float
    error: float
    label: str
    color: int | None = None  # of its run, in the palette of the page

    def draw(self, frame: Frame) -> str:
        """A circle with an error bar and a label."""
        x, y = frame.x(self.x), frame.y(self.y)
        top, bottom = frame.y(self.y + self.error), frame.y(self.y - self.error)
        paint = "" if self.color is None else f' style="stroke:var(--c{self.color})"'
        bar = f"M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 4:.1f} {top:.1f}h8M{x - 4:.1f} {bottom:.1f}h8"
        anchor, shift = ("end", -9) if x > frame.width * 0.6 else ("start", 9)  # label inside the plot
        return (f'<path class="error"{paint} d="{bar}"/>'
                f'<circle class="mark"{paint} cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
                f'<text class="value {anchor}" x="{x + shift:.1f}" y="{y - 7:.1f}">'
                f"{escape(self.label)}</text>")


def line_chart(x: Sequence[float], series: Sequence[Series], form: Format, *, marks: Sequence[Mark] = (),
               bounds: tuple[float | None, float | None] = (None, None), log: bool = False,
               size: tuple[float, float] = (470, 210)) -> str:
    """Lines over `x`, and marks with error bars; `bounds` fixes the ends of the y axis."""
    values = [v for one in series for v in one.values]
    values += [mark.y + sign * mark.error for mark in marks for sign in (-1, 1)]
    frame = fit([*x, *(mark.x for mark in marks)], values, bounds, log, size)
    shapes = [one.line(frame, x) for one in series] + [mark.draw(frame) for mark in marks]
    return _svg(frame, form, shapes, x, series)


def stack_chart(x: Sequence[float], series: Sequence[Series], form: Format, *, ceiling: float | None = None,
                size: tuple[float, float] = (470, 210)) -> str:
    """Bands stacked from the first series (bottom) to the last; values that cannot be drawn count as 0."""
    tops = [[0.0] * len(x)]
    for one in series:
        values = zip(tops[-1], one.values, strict=True)
        tops.append([low + (value if drawable(value) else 0.0) for low, value in values])
    frame = fit(x, tops[-1], (0.0, ceiling), log=False, size=size)
    levels = zip(series, tops[:-1], tops[1:], strict=True)
    shapes = [one.band(frame, x, base, top) for one, base, top in levels]
    return _svg(frame, form, shapes, x, series)


def legend(series: Sequence[Series]) -> str:
    """The names of the series with their colors, as HTML."""
    items = "".join(
        f'<span><i class="{"dashed" if one.dashed else "filled"}" style="--line:var(--c{one.color})"></i>'
        f"{escape(one.name)}</span>"
        for one in series if not one.faint
    )
    return f'<div class="legend">{items}</div>'


def _svg(frame: Frame, form: Format, shapes: Sequence[str], x: Sequence[float],
         series: Sequence[Series]) -> str:
    body = "".join([*_axes(frame, form), *shapes, *_tooltips(frame, x, series, form)])
    return f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" role="img">{body}</svg>'


def _axes(frame: Frame, form: Format) -> list[str]:
    right, bottom = frame.width - RIGHT, frame.height - BOTTOM
    parts: list[str] = []
    for level in frame.levels:
        y = frame.y(level)
        parts.append(f'<path class="grid" d="M{LEFT:g} {y:.1f}H{right:g}"/>'
                     f'<text class="end" x="{LEFT - 7:g}" y="{y + 3.5:.1f}">{escape(form(level))}</text>')
    for tick in ticks(*frame.x_range, count=round(frame.width / 90)):
        if tick == round(tick):
            parts.append(f'<text class="middle" x="{frame.x(tick):.1f}" y="{bottom + 17:g}">{tick:g}</text>')
    return [*parts, f'<path class="axis" d="M{LEFT:g} {bottom:g}H{right:g}"/>']


def _tooltips(frame: Frame, x: Sequence[float], series: Sequence[Series], form: Format) -> list[str]:
    if not x:
        return []
    every = math.ceil(len(x) / _COLUMNS)
    width = max((frame.width - LEFT - RIGHT) / max(len(x) - 1, 1) * every, 2.0)
    columns: list[str] = []
    for i in range(0, len(x), every):
        rows = [f"{one.name}: {form(one.values[i])}" for one in series if math.isfinite(one.values[i])]
        text = escape("\n".join([f"iteration {x[i]:g}", *rows]))
        left = max(frame.x(x[i]) - width / 2, LEFT)
        columns.append(f'<rect class="hit" x="{left:.1f}" y="{TOP:g}" width="{width:.1f}" '
                       f'height="{frame.height - TOP - BOTTOM:g}"><title>{text}</title></rect>')
    return columns
