"""Small charts as inline SVG; strokes and text take their colours from the page, so they suit light and dark.

Every iteration has an invisible column over the plot whose tooltip lists its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Format = Callable[[float], str]

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 26.0
_COLUMNS = 240  # tooltip columns at most
_TINY = 1e-12  # nothing plotted is smaller and not 0


@dataclass(frozen=True, slots=True)
class Series:
    """One line or band; `values` are aligned with the chart's x, NaN where there is none."""

    name: str
    values: Sequence[float]
    colour: int  # index of the page's palette
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with its standard error, drawn over the lines."""

    x: float
    y: float
    error: float
    label: str


@dataclass(frozen=True, slots=True)
class Frame:
    """Plot area and scales, from data to SVG units."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool = False

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)


def line_chart(x: Sequence[float], series: Sequence[Series], form: Format, *, marks: Sequence[Mark] = (),
               bounds: tuple[float | None, float | None] = (None, None), log: bool = False,
               size: tuple[float, float] = (470, 210)) -> str:
    """Lines over `x`, and marks with error bars; `bounds` fixes the ends of the y axis."""
    values = [v for one in series for v in one.values if math.isfinite(v) and not (log and v <= 0)]
    values += [mark.y + sign * mark.error for mark in marks for sign in (-1, 1)]
    frame = _frame([*x, *(mark.x for mark in marks)], values, bounds, log, size)
    shapes = [_line(frame, x, one) for one in series] + [_mark(frame, mark) for mark in marks]
    return _svg(frame, form, shapes, _tooltips(frame, x, series, form))


def stack_chart(x: Sequence[float], series: Sequence[Series], form: Format, *, ceiling: float | None = None,
                size: tuple[float, float] = (470, 210)) -> str:
    """Bands stacked from the first series (bottom) to the last, one column per x."""
    totals = [sum(_zero(one.values[i]) for one in series) for i in range(len(x))]
    frame = _frame(x, totals, (0.0, ceiling), log=False, size=size)
    base, shapes = [0.0] * len(x), list[str]()
    for one in series:
        top = [low + _zero(value) for low, value in zip(base, one.values, strict=True)]
        shapes.append(_band(frame, x, base, top, one))
        base = top
    return _svg(frame, form, shapes, _tooltips(frame, x, series, form))


def legend(series: Sequence[Series]) -> str:
    """The names of the series beside their colours, as HTML."""
    items = "".join(
        f'<span><i style="background:var(--c{one.colour})"></i>{escape(one.name)}</span>'
        for one in series if not one.faint
    )
    return f'<div class="legend">{items}</div>'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers within [low, high]."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _frame(x: Sequence[float], values: Sequence[float], bounds: tuple[float | None, float | None], log: bool,
           size: tuple[float, float]) -> Frame:
    low = min(values, default=1.0 if log else 0.0) if bounds[0] is None else bounds[0]
    high = max(values, default=1.0) if bounds[1] is None else bounds[1]
    left, right = min(x, default=0.0), max(x, default=1.0)
    y_range = _decades(low, high) if log else _roomy(low, high, bounds)
    return Frame(*size, (left, right if right > left else left + 1), y_range, log)


def _decades(low: float, high: float) -> tuple[float, float]:
    """Powers of ten around the values, at least one decade."""
    bottom = math.floor(math.log10(max(low, _TINY)))
    return 10.0**bottom, 10.0 ** max(math.ceil(math.log10(max(high, _TINY)) - 1e-9), bottom + 1)


def _roomy(low: float, high: float, bounds: tuple[float | None, float | None]) -> tuple[float, float]:
    """The values with some air at the ends that are not fixed; a flat line gets a range of 1."""
    if high - low <= 1e-9 * max(abs(low), abs(high), _TINY):
        return (low, low + 1) if bounds[0] is not None else (low - 0.5, low + 0.5)
    room = 0.06 * (high - low)
    return low - room * (bounds[0] is None), high + room * (bounds[1] is None)


def _line(frame: Frame, x: Sequence[float], series: Series) -> str:
    points = [(frame.x(a), frame.y(b)) for a, b in zip(x, series.values, strict=True)
              if math.isfinite(b) and not (frame.log and b <= 0)]
    kind = "line faint" if series.faint else "line"
    colour = f"var(--c{series.colour})"
    if len(points) == 1:
        (a, b), = points
        return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" style="fill:{colour}"/>'
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline class="{kind}" style="stroke:{colour}" points="{path}"/>'


def _band(frame: Frame, x: Sequence[float], base: Sequence[float], top: Sequence[float],
          series: Series) -> str:
    if len(x) == 1:
        a, b, low, high = frame.x_range[0], frame.x_range[1], base[0], top[0]
        corners = [(a, low), (a, high), (b, high), (b, low)]
    else:
        corners = [*zip(x, top, strict=True), *reversed(list(zip(x, base, strict=True)))]
    path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in corners)
    return f'<polygon class="band" style="fill:var(--c{series.colour})" points="{path}"/>'


def _mark(frame: Frame, mark: Mark) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    top, bottom = frame.y(mark.y + mark.error), frame.y(mark.y - mark.error)
    bar = f"M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 4:.1f} {top:.1f}h8M{x - 4:.1f} {bottom:.1f}h8"
    anchor, shift = ("end", -9) if x > frame.width * 0.6 else ("start", 9)  # keep the label inside the plot
    return (f'<path class="error" d="{bar}"/><circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
            f'<text class="value {anchor}" x="{x + shift:.1f}" y="{y - 7:.1f}">'
            f"{escape(mark.label)}</text>")


def _tooltips(frame: Frame, x: Sequence[float], series: Sequence[Series], form: Format) -> list[str]:
    if not x:
        return []
    every = math.ceil(len(x) / _COLUMNS)
    width = max((frame.width - _LEFT - _RIGHT) / max(len(x) - 1, 1) * every, 2.0)
    columns: list[str] = []
    for i in range(0, len(x), every):
        rows = [f"{one.name}: {form(one.values[i])}" for one in series if math.isfinite(one.values[i])]
        text = escape("\n".join([f"iteration {x[i]:g}", *rows]))
        left = max(frame.x(x[i]) - width / 2, _LEFT)
        columns.append(f'<rect class="hit" x="{left:.1f}" y="{_TOP:g}" width="{width:.1f}" '
                       f'height="{frame.height - _TOP - _BOTTOM:g}"><title>{text}</title></rect>')
    return columns


def _axes(frame: Frame, form: Format) -> list[str]:
    right, bottom = frame.width - _RIGHT, frame.height - _BOTTOM
    low, high = frame.y_range
    levels = ticks(low, high)
    if frame.log:
        powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
        levels = [10.0**p for p in powers][:: math.ceil(len(powers) / 5)]
    parts: list[str] = []
    for level in levels:
        y = frame.y(level)
        parts.append(f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{right:g}"/>'
                     f'<text class="end" x="{_LEFT - 7:g}" y="{y + 3.5:.1f}">{escape(form(level))}</text>')
    for step in ticks(*frame.x_range, count=round(frame.width / 90)):
        if step == round(step):
            parts.append(f'<text class="middle" x="{frame.x(step):.1f}" y="{bottom + 17:g}">{step:g}</text>')
    return [*parts, f'<path class="axis" d="M{_LEFT:g} {bottom:g}H{right:g}"/>']


def _svg(frame: Frame, form: Format, shapes: Sequence[str], tooltips: Sequence[str]) -> str:
    body = "".join([*_axes(frame, form), *shapes, *tooltips])
    return f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" role="img">{body}</svg>'
