"""The charts of the report, one card each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gigpo_mega.telemetry.report.numbers import number, percent, scientific, smooth
from gigpo_mega.telemetry.report.page import card
from gigpo_mega.telemetry.report.run_folder import KIND, RunFolder
from gigpo_mega.telemetry.report.svg import Format, Mark, Series, legend, line_chart, stack_chart

COLORS = 8  # of the page


@dataclass(frozen=True, slots=True)
class Chart:
    """A group of metrics over the iterations, as lines or as stacked bands."""

    title: str
    note: str
    metrics: tuple[tuple[str, str, int], ...]  # (label, metric, color)
    form: Format
    floor: float | None = None
    ceiling: float | None = None
    log: bool = False
    stacked: bool = False

    def card(self, run: RunFolder) -> str:
        """Its card, empty if the run has none of the metrics."""
        return self.drawn(run.x, [Series(label, run.column(name), color)
                                  for label, name, color in self.metrics if run.has(name)])

    def drawn(self, x: Sequence[float], series: Sequence[Series]) -> str:
        """A card of `series` in the manner of this chart, empty without any."""
        if not series:
            return ""
        if self.stacked:
            chart = stack_chart(x, series, self.form, ceiling=self.ceiling)
        else:
            chart = line_chart(x, series, self.form, bounds=(self.floor, self.ceiling), log=self.log)
        return card(self.title, self.note, chart + (legend(series) if len(series) > 1 else ""))


CHARTS = (
    Chart("Reward", "Mean undiscounted return of an episode.", (("return", "rollout/score", 0),), number),
    Chart("Episode length", "Mean steps of an episode.", (("steps", "rollout/length", 0),), number),
    Chart("Invalid actions", "Share of steps whose response was not a valid action.",
          (("invalid", "rollout/invalid", 4),), percent, floor=0.0),
    Chart("Advantage split", "Mean magnitude of the episode-level and the step-level advantage.",
          (("|A_E| episode", "advantage/episode_abs", 0), ("|A_S| step", "advantage/step_abs", 1)),
          number, floor=0.0),
    Chart("Anchor groups", "Share of steps by how many steps share their anchor state.",
          (("alone", "anchor/size_1", 5), ("2-3", "anchor/size_2_3", 6), ("4-7", "anchor/size_4_7", 7),
           ("8 or more", "anchor/size_8_plus", 0)), percent, ceiling=1.0, stacked=True),
    Chart("Stage times", "Seconds of an iteration.",
          (("rollout", "time/rollout", 0), ("advantage", "time/advantage", 1), ("update", "time/update", 2),
           ("push", "time/push", 3), ("evaluate", "time/evaluate", 4)), number, stacked=True),
    Chart("Engine against learner", "|log-prob(engine) - log-prob(learner)| of the sampled tokens.",
          (("mean", "engine/logprob_gap_mean", 0), ("largest", "engine/logprob_gap_max", 1)),
          scientific, log=True),
    Chart("Loss", "The clipped surrogate.", (("policy loss", "loss/policy", 0),), number),
    Chart("KL divergence", "Of the policy from the one that sampled, and from the reference policy.",
          (("sampled", "loss/approx_kl", 0), ("reference", "loss/kl", 1)), scientific),
    Chart("Clipping", "Share of tokens at a bound of the ratio, and at the bound of dual clipping.",
          (("clipped", "loss/clip_fraction", 0), ("dual clip", "loss/dual_clip_fraction", 1)),
          partial(percent, digits=1), floor=0.0),
    Chart("Entropy", "Mean entropy of the policy per token, in nats.", (("entropy", "loss/entropy", 2),),
          number, floor=0.0),
    Chart("Gradient norm", "Before clipping.", (("norm", "optimizer/grad_norm", 3),), number, floor=0.0),
)
_BY_KIND = Chart("Success by task type", "Training episodes, moving mean.", (), percent, floor=0.0)


def success_card(x: Sequence[float], series: Sequence[Series], marks: Sequence[Mark]) -> str:
    """Success of training episodes as lines, of the panel as marks; drawn for desks and for phones."""
    sizes = {"wide": (1000, 320), "narrow": (470, 300)}
    drawn = {kind: line_chart(x, series, percent, marks=marks, bounds=(0.0, None), size=size)
             for kind, size in sizes.items()}
    charts = "".join(f'<div class="{kind}">{chart}</div>' for kind, chart in drawn.items())
    note = "Circles: the fixed held-out panel, one standard error. Line: episodes of training."
    return card("Success rate", note, charts + (legend(series) if series else ""))


def success_lines(run: RunFolder) -> list[Series]:
    """Success of an iteration's episodes, as it is and as a moving mean."""
    if not run.has("rollout/success"):
        return []
    raw = run.column("rollout/success")
    window = span(raw)
    lines = [Series("training episodes of one iteration", raw, 0, faint=True),
             Series(f"training, mean of {window} iterations", smooth(raw, window), 0)]
    if beside := run.reference:
        values = beside.at(smooth(beside.training, window), run.x)
        lines.append(Series(beside.name, values, 1, dashed=True))
    return lines


def success_marks(run: RunFolder, color: int | None = None) -> list[Mark]:
    """The evaluations of the held-out panel; with a color for one of several runs, and then without text."""
    texts = [percent(e["success"], 1) if color is None else "" for e in run.evaluations]
    return [Mark(e["iteration"], e["success"], e["standard_error"], text, color)
            for e, text in zip(run.evaluations, texts, strict=True)]


def span(values: Sequence[float]) -> int:
    """The iterations over which a curve of success is averaged, an odd number."""
    return max(len(values) // 8, 5) | 1


def training_cards(run: RunFolder) -> list[str]:
    """A card for every group of metrics that the run has."""
    cards = [_training_by_kind(run), _panel_by_kind(run), *(chart.card(run) for chart in CHARTS)]
    return [one for one in cards if one]


def _training_by_kind(run: RunFolder) -> str:
    """A line for each task type, and in the same color, dashed, that of the reference."""
    window, beside = span(run.x), run.reference
    lines = _kind_lines({kind: smooth(run.column(f"{KIND}{kind}"), window) for kind in run.kinds})
    if len(lines) < 2:
        return ""
    if beside:
        recorded = ((line, beside.kinds[kind]) for kind, line in zip(run.kinds, lines, strict=True)
                    if kind in beside.kinds)
        lines += [replace(line, name=f"{line.name}, {beside.estimator}", dashed=True,
                          values=beside.at(smooth(values, window), run.x)) for line, values in recorded]
    return _BY_KIND.drawn(run.x, lines)


def _panel_by_kind(run: RunFolder) -> str:
    """Needs three evaluations: the table of task types shows the first and the last."""
    if len(run.evaluations) < 3:
        return ""
    columns = {
        kind: [e["kinds"].get(kind, {}).get("success", math.nan) for e in run.evaluations]
        for kind in sorted(set[str]().union(*(e["kinds"] for e in run.evaluations)))
    }
    chart = replace(_BY_KIND, title="Held-out success by task type", note="The fixed panel.")
    lines = _kind_lines(columns)
    # If there is only one, its success has a card of its own.
    return chart.drawn([float(e["iteration"]) for e in run.evaluations], lines) if len(lines) > 1 else ""


def _kind_lines(columns: Mapping[str, Sequence[float]]) -> list[Series]:
    return [Series(kind.replace("_", " "), values, number % COLORS)
            for number, (kind, values) in enumerate(columns.items())]
