"""The plot area of a chart: scales from data to SVG units, and ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 26.0  # margins
TINY, LARGEST = 1e-12, 1e300  # below the first a value counts as 0; above the second differences overflow


@dataclass(frozen=True, slots=True)
class Frame:
    """Plot area and scales, from data to SVG units."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool = False

    def x(self, value: float) -> float:
        """The horizontal position of `value`."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """The vertical position of `value`."""
        low, high = self.y_range
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)

    def shows(self, value: float) -> bool:
        """Whether `value` can be drawn: it is a number, not too large, and positive on a log scale."""
        return drawable(value) and not (self.log and value <= 0)

    @property
    def levels(self) -> list[float]:
        """Ticks of the y axis."""
        low, high = self.y_range
        if not self.log:
            return ticks(low, high)
        powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
        return [10.0**p for p in powers][:: math.ceil(len(powers) / 5)]


def drawable(value: float) -> bool:
    """Whether a linear scale can show `value`: neither NaN nor infinite nor close to it."""
    return abs(value) <= LARGEST


def fit(x: Sequence[float], values: Sequence[float], bounds: tuple[float | None, float | None], log: bool,
        size: tuple[float, float]) -> Frame:
    """The frame around `x` and `values`, with room at the ends of the y axis that `bounds` does not fix.

    A log scale ends at powers of ten and has at least one decade. A flat line is in the middle of its range,
    which is 1, or a millionth of a large value.
    """
    values = [v for v in values if drawable(v) and not (log and v <= 0)]
    low = min(values, default=1.0 if log else 0.0) if bounds[0] is None else bounds[0]
    high = max(values, default=1.0) if bounds[1] is None else bounds[1]
    if log:
        bottom = math.floor(math.log10(max(low, TINY)))
        top = max(math.ceil(math.log10(max(high, TINY)) - 1e-9), bottom + 1)
        y_range = 10.0**bottom, 10.0**top
    elif high - low <= 1e-9 * max(abs(low), abs(high), TINY):
        half = max(0.5, 1e-6 * abs(low))
        y_range = (low, low + 2 * half) if bounds[0] is not None else (low - half, low + half)
    else:
        room = 0.06 * (high - low)
        y_range = low - room * (bounds[0] is None), high + room * (bounds[1] is None)
    left, right = min(x, default=0.0), max(x, default=1.0)
    return Frame(*size, (left, right if right > left else left + 1), y_range, log)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers within [low, high]."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
