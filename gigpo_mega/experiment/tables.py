"""The tables of an experiment, for the page and for Markdown: success, differences, power, mechanism."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gigpo_mega.experiment.analysis import MECHANISM, SCORES
from gigpo_mega.experiment.spec import Spec
from gigpo_mega.telemetry.report.numbers import number


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a head, whose first column names them."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        """Its lines, numbers to the right."""
        rules = ["---", *["---:"] * (len(self.head) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.head, rules, *self.rows))

    @property
    def html(self) -> str:
        """The same as HTML, which scrolls if it is too wide."""

        def line(cells: Sequence[str], tag: str) -> str:
            first, *others = (escape(cell) for cell in cells)
            style = 'class="number" style="white-space:normal"'
            numbers = "".join(f"<{tag} {style}>{cell}</{tag}>" for cell in others)
            return f"<tr><{tag}>{first}</{tag}>{numbers}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f'<div class="scroll"><table>{line(self.head, "th")}{body}</table></div>'


def tables(spec: Spec, summary: Mapping[str, Any]) -> Iterator[Table]:
    """All tables of a summary."""
    yield _success(summary)
    for reference in spec.references:
        for kind in SCORES:
            yield _differences(reference, SCORES[kind], summary["differences"][kind][reference])
    if spec.power_for:
        yield _power(summary["power"])
    yield _kinds(summary)
    yield _mechanism(summary)


def state(spec: Spec, summary: Mapping[str, Any]) -> list[str]:
    """What the summary is of, and what is missing, in sentences."""
    seeds = ", ".join(map(str, summary["complete_seeds"])) or "none"
    commits = ", ".join(f"{commit[:7]} ({count})" for commit, count in summary["commits"].items())
    lines = [
        f"{summary['runs']} of {summary['planned']} runs; seeds with all variants: {seeds}; "
        f"{summary['iterations']} iterations; {', '.join(summary['devices'])}.",
        f"{'Mixed commits' if len(summary['commits']) > 1 else 'Commit'}: {commits}.",
    ]
    if spec.main:
        variant, reference = spec.main
        lines.append(
            f"The main question is {variant} minus {reference}, {SCORES['panel']}; all other differences are "
            "secondary, and not corrected for their number."
        )
    if summary["runs"] < summary["planned"]:
        lines.append("Incomplete: nothing here is a result yet.")
    return lines


def markdown(name: str, spec: Spec, summary: Mapping[str, Any]) -> str:
    """The tables as a Markdown page."""
    parts = [
        f"# {name}",
        f"<!-- Written by gigpo-mega experiment docs/experiments/{name}.yaml -->",
        *state(spec, summary),
    ]
    for table in tables(spec, summary):
        parts += [f"## {table.title}", table.note, table.markdown]
    return "\n\n".join(parts) + "\n"


def _success(summary: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            str(len(one["seeds"])),
            f"{one['groups']:.0f}",
            "-" if one["before"] is None else f"{100 * one['before']:.1f}",
            *(_interval(one[kind]) for kind in SCORES),
        ]
        for name, one in summary["variants"].items()
    ]
    head = ["variant", "seeds", "groups played", "panel before", *SCORES.values()]
    note = "In percent: mean over seeds, with its bootstrap interval. Groups played are a run's, their mean."
    return Table("Success", note, head, rows)


def _differences(reference: str, title: str, found: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            str(one["seeds"]),
            _interval(one["mean"], "+"),
            f"{one['p_value']:.4f}",
            _interval(one["improvement"]),
            "yes" if one["clear"] else "no",
        ]
        for name, one in found.items()
    ]
    head = ["variant", "seeds", "mean difference", "sign-flip p", "probability of improvement", "clear of 0"]
    note = (
        f"Paired by seed, in points: {title}. The probability of improvement is in percent. Clear of 0: the "
        "interval is, and the exact test has p <= 0.05."
    )
    return Table(f"Minus {reference}: {title}", note, head, rows)


def _power(found: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{variant}, {kind}",
            str(one["seeds"]),
            f"{100 * one['deviation']:.1f}",
            "none" if one["detectable"] is None else f"{100 * one['detectable']:.1f}",
            f"{100 * one['false_claims']:.1f}",
            f"{100 * one['interval_excludes_0']:.1f}",
        ]
        for kind, variants in found.items()
        for variant, several in variants.items()
        for one in several
    ]
    head = [
        "spread of",
        "seeds",
        "deviation of a difference",
        "claimed in four of five cases from",
        "false claims",
        "false claims of the bootstrap alone",
    ]
    note = (
        "What later experiments could show if their runs spread as these do and pairing did not help: "
        "differences in points, false claims in percent."
    )
    return Table("Power", note, head, rows)


def _kinds(summary: Mapping[str, Any]) -> Table:
    kinds = sorted({kind for one in summary["variants"].values() for kind in one["kinds"]})
    rows = [
        [name, *("-" if kind not in one["kinds"] else f"{100 * one['kinds'][kind]:.1f}" for kind in kinds)]
        for name, one in summary["variants"].items()
    ]
    note = "Success on the panel after training, in percent: mean over seeds."
    return Table("Success by type of task", note, ["variant", *kinds], rows)


def _mechanism(summary: Mapping[str, Any]) -> Table:
    def cell(one: Mapping[str, Any], metric: str) -> str:
        ends = [one["mechanism"][metric][end] for end in ("first", "last")]
        # Rounded, as three digits of a smaller share would have an exponent.
        return " to ".join("-" if value is None else number(round(value, 5)) for value in ends)

    rows = [[name, *(cell(one, metric) for metric in MECHANISM)] for name, one in summary["variants"].items()]
    note = "From the first iteration to the mean of the last quarter, over seeds."
    return Table("Mechanism", note, ["variant", *MECHANISM.values()], rows)


def _interval(one: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (f"{100 * one[end]:{sign}.1f}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
