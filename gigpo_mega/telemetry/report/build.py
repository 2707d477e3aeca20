"""`report.html`: what a run did, from the files in its folder alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gigpo_mega.storage.files import replace_text
from gigpo_mega.telemetry.report import episodes
from gigpo_mega.telemetry.report.charts import success_card, success_lines, success_marks, training_cards
from gigpo_mega.telemetry.report.numbers import percent
from gigpo_mega.telemetry.report.page import page, tile
from gigpo_mega.telemetry.report.run_folder import RunFolder

_DOT = " \u00b7 "
_EPISODES_NOTE = (
    '<p class="soft intro">Episodes of one task from the same start. A square is a step; steps in the same '
    "color were taken from the same anchor state and are compared with one another (A<sub>S</sub>), whole "
    "episodes by their return (A<sub>E</sub>). Gray: seen once, or by episodes not shown.</p>"
)


def write_report(output: Path) -> Path:
    """Build `output/report.html` from the run folder `output`, atomically, and return its path.

    Raises UserError if the folder holds neither metrics nor an evaluation.
    """
    target = output / "report.html"
    replace_text(target, render(RunFolder.read(output)))
    return target


def render(run: RunFolder) -> str:
    """The whole report as one HTML document."""
    rows = len(run.rows)
    subtitle = [f"{rows} iteration{'s' * (rows != 1)}"] if rows else []
    if run.evaluations:
        last = run.evaluations[-1]
        subtitle.append(f"panel: {last['episodes']} episodes of {last['split']}")
        subtitle.append(f"panel temperature {last['temperature']:g}")
    parts = [f"<h1>{escape(run.name)}</h1>", f'<p class="soft">{escape(_DOT.join(subtitle))}</p>',
             *(f'<p class="soft">{escape(line)}</p>' for line in origins(run)),
             f'<div class="tiles">{"".join(headlines(run))}</div>',
             success_card(run.x, success_lines(run), success_marks(run))]
    if run.rows:
        parts += ['<h2>Training</h2><div class="grid2">', *training_cards(run), "</div>"]
    if run.evaluations:
        titles = [f"iteration {e['iteration']}" for e in run.ends]
        parts += ["<h2>Held-out panel by task type</h2>", panel_table(run.ends, titles)]
    if run.records:
        parts += ["<h2>Sample episodes</h2>", _EPISODES_NOTE]
        parts += map(episodes.show, episodes.sample(run.records))
    if run.config:
        parts.append(f'<h2>Configuration</h2><section class="card"><pre>{escape(run.config)}</pre></section>')
    return page(f"{run.name} - gigpo-mega", "".join(parts))


def origins(run: RunFolder) -> list[str]:
    """A line for each commit and machine that made the run."""
    lines: dict[str, int] = {}  # with the iteration that each begins at
    for start in run.starts:
        versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        processes = f"{start['processes']} process{'es' * (start['processes'] != 1)}"
        line = _DOT.join([f"commit {start['commit'][:12]}", start["device"], processes, versions])
        lines.setdefault(line, start["iteration"])
    return [line if len(lines) == 1 else f"from iteration {begun}: {line}" for line, begun in lines.items()]


def headlines(run: RunFolder) -> list[str]:
    """Tiles with the panel before and after, the minutes, and the gap between engine and learner."""
    tiles = [
        tile(percent(e["success"], 1), f"held-out success at iteration {e['iteration']}") for e in run.ends
    ]
    if len(run.ends) == 2:
        points, error = gain(*run.ends)
        kind = "good" if points > 0 else "bad"
        tiles.append(tile(f"{points:+.1f}", f"points, standard error {error:.1f}", kind))
    if seconds := run.finite("time/total"):
        tiles.append(tile(f"{sum(seconds) / 60:.1f} min", "in iterations"))
    if gaps := run.finite("engine/logprob_gap_mean"):
        tiles.append(tile(f"{max(gaps):.1e}", "largest mean log-prob gap, engine to learner"))
    return tiles


def gain(first: Mapping[str, Any], last: Mapping[str, Any]) -> tuple[float, float]:
    """The points between two evaluations, and their standard error as of independent panels."""
    error = math.hypot(first["standard_error"], last["standard_error"])
    return 100 * (last["success"] - first["success"]), 100 * error


def panel_table(shown: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> str:
    """Success by task type and ALL in one or two evaluations, called `titles`, and their difference."""
    last = shown[-1]
    names = ["episodes", *titles, *["points"][: len(shown) - 1]]
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = "".join(
        _panel_row(kind.replace("_", " "), last["kinds"][kind]["episodes"],
                   [e["kinds"].get(kind, {}).get("success", math.nan) for e in shown])
        for kind in sorted(last["kinds"])
    )
    total = _panel_row("ALL", last["episodes"], [e["success"] for e in shown], kind="all")
    return f'<section class="card"><table><tr><th>task type</th>{head}</tr>{rows}{total}</table></section>'


def _panel_row(name: str, count: int, rates: Sequence[float], kind: str = "") -> str:
    cells = [f"{count}", *(percent(rate, 1) for rate in rates)]
    if len(rates) > 1:
        cells.append(f"{100 * (rates[-1] - rates[0]):+.1f}")
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f'<tr class="{kind}"><td>{escape(name)}</td>{numbers}</tr>'
