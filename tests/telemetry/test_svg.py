"""Charts draw values at the positions that their axes show."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigpo_mega.telemetry.report.frame import Frame, ticks
from gigpo_mega.telemetry.report.svg import Mark, Series, legend, line_chart, stack_chart

FRAME = Frame(470, 210, (0, 10), (0, 1))


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def points(chart: str, kind: str) -> list[list[tuple[float, float]]]:
    shapes = re.findall(rf'<{kind} [^>]*points="([^"]*)"', chart)
    corners = [[pair.split(",") for pair in shape.split()] for shape in shapes]
    return [[(float(a), float(b)) for a, b in shape] for shape in corners]


def test_frame_maps_corners_to_corners():
    assert (FRAME.x(0), FRAME.x(10)) == (46, 458)
    assert (FRAME.y(0), FRAME.y(1)) == (184, 10)
    assert Frame(470, 210, (0, 1), (1e-8, 1e-4), log=True).y(1e-6) == pytest.approx((184 + 10) / 2)


def test_line_goes_through_its_values_and_skips_what_is_missing():
    values = [0.0, math.nan, 1.0]
    chart = line_chart([0, 5, 10], [Series("success", values, 2)], percent, bounds=(0.0, 1.0))
    assert points(chart, "polyline") == [[(46.0, 184.0), (458.0, 10.0)]]
    assert "var(--c2)" in chart


def test_single_value_is_a_dot():
    chart = line_chart([3], [Series("success", [0.5], 0)], percent)
    assert chart.count("<circle") == 1
    assert "<polyline" not in chart


def test_mark_shows_value_and_standard_error():
    mark = Mark(10, 0.5, 0.1, "50.0%")
    chart = line_chart([0, 10], [Series("success", [0.0, 1.0], 0)], percent, marks=[mark], bounds=(0.0, 1.0))
    assert '<circle class="mark" cx="458.0" cy="97.0"' in chart
    assert "M458.0 79.6V114.4" in chart
    assert ">50.0%</text>" in chart


def test_bands_stand_on_one_another():
    series = [Series("a", [0.25, 0.5], 0), Series("b", [0.75, 0.5], 1)]
    chart = stack_chart([0, 10], series, percent, ceiling=1.0)
    lower, upper = points(chart, "polygon")
    assert lower == [(46.0, 140.5), (458.0, 97.0), (458.0, 184.0), (46.0, 184.0)]
    assert upper == [(46.0, 10.0), (458.0, 10.0), (458.0, 97.0), (46.0, 140.5)]


def test_tooltips_list_every_series_and_are_thinned():
    x = [float(i) for i in range(1000)]
    chart = line_chart(x, [Series("a<b", x, 0), Series("late", [math.nan] * 999 + [1.0], 1)], percent)
    tips = re.findall(r"<title>(.*?)</title>", chart, re.DOTALL)
    assert tips[1] == "iteration 5\na&lt;b: 500%"
    assert len(tips) == 200


def test_legend_leaves_out_faint_lines():
    html = legend([Series("shown", [], 0), Series("hidden", [], 1, faint=True)])
    assert "shown" in html
    assert "hidden" not in html


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 40, [0, 10, 20, 30, 40]), (-0.003, 0.0101, [0, 0.005, 0.01]),
])
def test_ticks_are_round(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == pytest.approx(expected)


@given(st.lists(st.floats(-1e6, 1e6) | st.floats(), max_size=6), st.booleans())
def test_any_values_give_well_formed_svg_inside_its_box(values: list[float], log: bool):
    x = [float(i) for i in range(len(values))]
    chart = line_chart(x, [Series("a", values, 0)], percent, log=log)
    ElementTree.fromstring(chart)
    for a, b in (pair for line in points(chart, "polyline") for pair in line):
        assert 46 <= a <= 458
        assert 10 <= b <= 184
