"""`report.html`: what a run did, from the files in its folder alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from gigpo_mega.errors import UserError
from gigpo_mega.telemetry import episodes
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.telemetry.page import card, page, tile
from gigpo_mega.telemetry.svg import Format, Mark, Series, legend, line_chart, stack_chart

_SIZES = (("alone", "anchor/size_1", 5), ("2-3", "anchor/size_2_3", 6), ("4-7", "anchor/size_4_7", 7),
          ("8 or more", "anchor/size_8_plus", 0))
_STAGES = (("rollout", "time/rollout", 0), ("advantage", "time/advantage", 1), ("update", "time/update", 2),
           ("push", "time/push", 3), ("evaluate", "time/evaluate", 4))


@dataclass(frozen=True, slots=True)
class Run:
    """The files of a run folder."""

    name: str
    rows: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]  # by step
    records: list[dict[str, Any]]
    config: str

    @property
    def x(self) -> list[float]:
        """Iterations."""
        return [float(row["step"]) for row in self.rows]

    def column(self, name: str) -> list[float]:
        """A metric over the iterations, NaN where a row lacks it."""
        return [float(row.get(name, math.nan)) for row in self.rows]

    def has(self, name: str) -> bool:
        """Whether any row knows this metric."""
        return any(name in row for row in self.rows)


def write_report(output: Path) -> Path:
    """Build `output/report.html` from the run folder `output`, atomically, and return its path.

    Raises UserError where the folder holds neither metrics nor an evaluation.
    """
    run = read_run(output)
    target = output / "report.html"
    partial = target.with_name(target.name + ".partial")
    partial.write_text(render(run), encoding="utf-8")
    os.replace(partial, target)
    return target


def read_run(output: Path) -> Run:
    """Read what is there; any file may be missing but not all."""
    rows = read_rows(output / "metrics.jsonl")
    evaluations = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("evaluation_*.json")]
    if not rows and not evaluations:
        raise UserError(f"{output} is no run folder: it has neither metrics.jsonl nor evaluation_*.json")
    config = output / "config.yaml"
    return Run(
        name=output.resolve().name,
        rows=rows,
        evaluations=sorted(evaluations, key=lambda evaluation: evaluation["step"]),
        records=read_rows(output / "episodes.jsonl"),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )


def render(run: Run) -> str:
    """The whole report as one HTML document."""
    parts = [f"<h1>{escape(run.name)}</h1>", f'<p class="soft">{escape(_subtitle(run))}</p>', _tiles(run)]
    parts.append(_success(run))
    if run.rows:
        parts += ['<h2>Training</h2><div class="grid2">', *_charts(run), "</div>"]
    if run.evaluations:
        parts += ["<h2>Held-out panel by task type</h2>", _panel(run.evaluations)]
    if run.records:
        parts += ["<h2>Sample episodes</h2>", _EPISODES_NOTE]
        parts += map(episodes.show, episodes.sample(run.records))
    if run.config:
        parts.append(f'<h2>Configuration</h2><section class="card"><pre>{escape(run.config)}</pre></section>')
    return page(f"{run.name} - gigpo-mega", "".join(parts))


_EPISODES_NOTE = (
    '<p class="soft intro">Episodes of one task from the same start. A square is a step; steps in the same '
    "colour were taken from the same anchor state and are compared with one another (A<sub>S</sub>), whole "
    "episodes by their return (A<sub>E</sub>). Grey: seen once, or by episodes not shown.</p>"
)


def _subtitle(run: Run) -> str:
    rows = len(run.rows)
    parts = [f"{rows} iteration{'s' * (rows != 1)}"] if rows else []
    if run.evaluations:
        last = run.evaluations[-1]
        parts.append(f"panel: {last['episodes']} episodes of {last['split']}")
        parts.append(f"panel temperature {last['temperature']:g}")
    return " \u00b7 ".join(parts)


def _tiles(run: Run) -> str:
    tiles: list[str] = []
    if run.evaluations:
        first, last = run.evaluations[0], run.evaluations[-1]
        tiles.append(_panel_tile(first))
        if last is not first:
            gain = 100 * (last["success"] - first["success"])
            error = 100 * math.hypot(first["standard_error"], last["standard_error"])
            kind = "good" if gain > 0 else "bad"
            tiles.append(_panel_tile(last))
            tiles.append(tile(f"{gain:+.1f}", f"points, standard error {error:.1f}", kind))
    if run.has("time/total"):
        minutes = sum(filter(math.isfinite, run.column("time/total"))) / 60
        tiles.append(tile(f"{minutes:.1f} min", "in iterations"))
    if run.has("engine/logprob_gap_mean"):
        worst = max(filter(math.isfinite, run.column("engine/logprob_gap_mean")))
        tiles.append(tile(f"{worst:.1e}", "largest mean log-prob gap, engine to learner"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _panel_tile(evaluation: Mapping[str, Any]) -> str:
    return tile(_rate(evaluation), f"held-out success at iteration {evaluation['step']}")


def _rate(evaluation: Mapping[str, Any]) -> str:
    return f"{100 * evaluation['success']:.1f}%"


def _success(run: Run) -> str:
    raw = run.column("rollout/success")
    window = max(len(raw) // 8, 5) | 1
    series = [Series("training episodes of one iteration", raw, 0, faint=True),
              Series(f"training, mean of {window} iterations", smooth(raw, window), 0)]
    marks = [Mark(e["step"], e["success"], e["standard_error"], _rate(e)) for e in run.evaluations]
    chart = line_chart(run.x, series if run.has("rollout/success") else [], percent, marks=marks,
                       bounds=(0.0, None), size=(1000, 320))
    note = "Circles: the fixed held-out panel, one standard error. Line: episodes of training."
    return card("Success rate", note, chart + (legend(series) if run.rows else ""))


def _charts(run: Run) -> list[str]:
    """A card for every group of metrics that the run has."""
    cards = [
        _lines(run, "Reward", "Mean undiscounted return of an episode.",
               [("return", "rollout/score", 0)], number),
        _lines(run, "Episode length", "Mean steps of an episode.",
               [("steps", "rollout/length", 0)], number),
        _lines(run, "Invalid actions", "Share of steps whose answer was no action.",
               [("invalid", "rollout/invalid", 4)], percent, floor=0.0),
        _lines(run, "Advantage split", "Mean magnitude of the episode-level and the step-level advantage.",
               [("|A_E| episode", "advantage/episode_abs", 0), ("|A_S| step", "advantage/step_abs", 1)],
               number, floor=0.0),
        _stack(run, "Anchor groups", "Share of steps by how many steps share their anchor state.", _SIZES,
               percent, ceiling=1.0),
        _stack(run, "Stage times", "Seconds of an iteration.", _STAGES, number),
        _lines(run, "Engine against learner", "|log-prob(engine) - log-prob(learner)| of the sampled tokens.",
               [("mean", "engine/logprob_gap_mean", 0), ("largest", "engine/logprob_gap_max", 1)],
               scientific, log=True),
        _lines(run, "Loss", "Clipped surrogate and KL divergence to the reference policy.",
               [("policy loss", "loss/policy", 0), ("KL", "loss/kl", 1)], number),
        _lines(run, "Entropy", "Mean entropy of the policy per token, in nats.",
               [("entropy", "loss/entropy", 2)], number, floor=0.0),
        _lines(run, "Gradient norm", "Before clipping.",
               [("norm", "optimizer/grad_norm", 3)], number, floor=0.0),
    ]
    return [one for one in cards if one]


def _lines(run: Run, title: str, note: str, metrics: Sequence[tuple[str, str, int]], form: Format, *,
           floor: float | None = None, log: bool = False) -> str:
    series = [Series(label, run.column(name), colour) for label, name, colour in metrics if run.has(name)]
    if not series:
        return ""
    chart = line_chart(run.x, series, form, bounds=(floor, None), log=log)
    return card(title, note, chart + (legend(series) if len(series) > 1 else ""))


def _stack(run: Run, title: str, note: str, metrics: Sequence[tuple[str, str, int]], form: Format, *,
           ceiling: float | None = None) -> str:
    series = [Series(label, run.column(name), colour) for label, name, colour in metrics if run.has(name)]
    if not series:
        return ""
    return card(title, note, stack_chart(run.x, series, form, ceiling=ceiling) + legend(series))


def _panel(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Success by task type and ALL: first and last evaluation, and the difference in points."""
    shown = [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else [evaluations[0]]
    last = shown[-1]
    titles = ["episodes", *(f"iteration {e['step']}" for e in shown), *["points"][: len(shown) - 1]]
    head = "".join(f'<th class="number">{title}</th>' for title in titles)
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


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values, over fewer at the ends; NaN is left out."""
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
    """1e-7, or 3.2e-7 where the digit matters."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
