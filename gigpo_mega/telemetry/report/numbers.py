"""Numbers as short text, and a moving mean."""

from __future__ import annotations

import math
from collections.abc import Sequence


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centered mean over `window` values, over fewer at the ends; NaN is left out."""
    half = window // 2
    means: list[float] = []
    for i in range(len(values)):
        near = [v for v in values[max(i - half, 0) : i + half + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def percent(value: float, digits: int = 0) -> str:
    """0.31 as 31%."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else "-"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def scientific(value: float) -> str:
    """0, 1e-7, or 3.2e-7 if the second digit is not 0."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
