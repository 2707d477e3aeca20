"""Two runs in one page: curves over each other, their held-out panels, and the settings that differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from gigpo_mega.config.core_yaml import leaves, load
from gigpo_mega.storage.files import replace_text
from gigpo_mega.telemetry.report.build import gain, origins, panel_table
from gigpo_mega.telemetry.report.charts import (
    CHARTS,
    Chart,
    span,
    success_card,
    success_marks,
)
from gigpo_mega.telemetry.report.numbers import number, percent, smooth
from gigpo_mega.telemetry.report.page import page, tile
from gigpo_mega.telemetry.report.run_folder import KIND, RunFolder
from gigpo_mega.telemetry.report.svg import Series

_TIME = Chart("Iteration", "Seconds of an iteration.", (("", "time/total", 0),), number, floor=0.0)
_OF_THE_LAUNCH = ("output", "resume")


def write_comparison(output: Path, other: Path) -> Path:
    """Build `output/report_against_OTHER.html` of two run folders, atomically, and return its path.

    Raises UserError if a folder holds neither metrics nor an evaluation.
    """
    pair = Pair.of(RunFolder.read(output), RunFolder.read(other))
    target = output / f"report_against_{pair.runs[1].name}.html"
    replace_text(target, render(pair))
    return target


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs, and how they are called."""

    runs: tuple[RunFolder, RunFolder]
    names: tuple[str, str]

    @classmethod
    def of(cls, run: RunFolder, other: RunFolder) -> Pair:
        """Runs whose folders have one name are told apart as the first and the second."""
        same = run.name == other.name
        names = (f"{run.name} (1)", f"{other.name} (2)") if same else (run.name, other.name)
        return cls((run, other), names)

    @property
    def x(self) -> list[float]:
        """The iterations of either run."""
        return sorted({*self.runs[0].x, *self.runs[1].x})

    def lines(self, metric: str, smoothed: bool = False) -> list[Series]:
        """A metric of each run that has it, aligned with `x`."""
        return [self._line(which, metric, smoothed) for which in (0, 1) if self.runs[which].has(metric)]

    def _line(self, which: int, metric: str, smoothed: bool) -> Series:
        run = self.runs[which]
        values = run.column(metric)
        if smoothed:
            values = smooth(values, span(values))
        return Series(self.names[which], aligned(run.x, values, self.x), which)


def aligned(own: Sequence[float], values: Sequence[float], x: Sequence[float]) -> list[float]:
    """`values`, which are at `own`, at `x`: NaN where there is none."""
    held = dict(zip(own, values, strict=True))
    return [held.get(at, float("nan")) for at in x]


def render(pair: Pair) -> str:
    """The comparison as one HTML document."""
    first, second = pair.names
    marks = [mark for color, run in enumerate(pair.runs) for mark in success_marks(run, color)]
    parts = [
        f"<h1>{escape(first)} and {escape(second)}</h1>",
        *map(_origin, pair.runs, pair.names),
        f'<div class="tiles">{"".join(_tiles(pair))}</div>',
        success_card(pair.x, pair.lines("rollout/success", smoothed=True), marks),
    ]
    if cards := _cards(pair):
        parts += ['<h2>Training</h2><div class="grid2">', *cards, "</div>"]
    if all(run.evaluations for run in pair.runs):
        shown = [run.evaluations[-1] for run in pair.runs]
        parts += ["<h2>Last held-out panels by task type</h2>", _panel_note(pair)]
        parts.append(panel_table(shown, pair.names))
    parts += ["<h2>Settings that differ</h2>", _settings(pair)]
    return page(f"{first} and {second} - gigpo-mega", "".join(parts))


def differences(one: str, other: str) -> list[tuple[str, str, str]]:
    """(field, value, other value) of two configurations in YAML, those of the launch apart."""
    left, right = (
        {field: json.dumps(value, default=str) for field, value in leaves(load(text) or {})}
        for text in (one, other)
    )
    fields = sorted(field for field in {*left, *right} if field not in _OF_THE_LAUNCH)
    pairs = [(field, left.get(field, "-"), right.get(field, "-")) for field in fields]
    return [(field, a, b) for field, a, b in pairs if a != b]


def _origin(run: RunFolder, name: str) -> str:
    lines = "; ".join([f"{len(run.rows)} iterations", *origins(run)])
    return f'<p class="soft">{escape(f"{name}: {lines}")}</p>'


def _tiles(pair: Pair) -> Iterator[str]:
    named = zip(pair.names, pair.runs, strict=True)
    ends = {name: run.evaluations[-1] for name, run in named if run.evaluations}
    for name, end in ends.items():
        yield tile(percent(end["success"], 1), f"{name}, held-out at iteration {end['iteration']}")
    if len(ends) == 2:
        points, error = gain(*ends.values())
        label = f"points of {pair.names[1]} over {pair.names[0]}, standard error {error:.1f}"
        yield tile(f"{points:+.1f}", label)


def _cards(pair: Pair) -> list[str]:
    """A card for each metric of the report's line charts and for each task type, with a line of each run."""
    kinds = sorted({*pair.runs[0].kinds, *pair.runs[1].kinds})
    by_kind = Chart("", "Success of training episodes, moving mean.", (), percent, floor=0.0)
    cards = [
        replace(by_kind, title=kind.replace("_", " ")).drawn(pair.x, pair.lines(KIND + kind, smoothed=True))
        for kind in kinds
        if len(kinds) > 1
    ]
    for chart in (*CHARTS, _TIME):
        for label, metric, _ in () if chart.stacked else chart.metrics:
            title = f"{chart.title}: {label}" if len(chart.metrics) > 1 else chart.title
            cards.append(replace(chart, title=title).drawn(pair.x, pair.lines(metric)))
    return [one for one in cards if one]


def _panel_note(pair: Pair) -> str:
    """One line if the two panels are not alike, so that their difference says little."""
    asked = ("episodes", "split", "temperature")
    of = [", ".join(f"{name} {run.evaluations[-1][name]}" for name in asked) for run in pair.runs]
    if of[0] == of[1]:
        return ""
    return f'<p class="soft intro">The panels differ: {escape(of[0])}; {escape(of[1])}.</p>'


def _settings(pair: Pair) -> str:
    rows = differences(pair.runs[0].config, pair.runs[1].config)
    if not rows:
        return '<section class="card">None: the two configurations are equal.</section>'
    head = "".join(f"<th>{escape(name)}</th>" for name in ("field", *pair.names))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<section class="card scroll"><table class="settings"><tr>{head}</tr>{body}</table></section>'
