"""Recorded episodes as HTML: colors for shared states, and both advantages of every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gigpo_mega.telemetry.report.page import HUES, tint

_RECORDS = 3


def sample(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first, the middle and the last record."""
    if len(records) <= _RECORDS:
        return list(records)
    return [records[0], records[len(records) // 2], records[-1]]


def show(record: Mapping[str, Any]) -> str:
    """One recorded group: a strip of states per episode, which unfolds to its steps; the first is unfolded.

    The anchor groups shown most often have a color each, the others stay gray.
    """
    steps = [step for episode in record["episodes"] for step in episode["steps"]]
    seen = Counter(step["group"] for step in steps if step["shared"])
    common = [group for group, count in seen.most_common(len(HUES)) if count > 1]
    colors = {group: f"--g:hsl({hue} 58% 46%)" for group, hue in zip(common, HUES, strict=False)}
    episodes = "".join(
        _episode(episode, colors, is_open=index == 0) for index, episode in enumerate(record["episodes"])
    )
    kind = record["kind"].replace("_", " ")
    return (f'<section class="card record"><h3>Iteration {record["iteration"]}: {escape(kind)}</h3>'
            f'<p class="soft mono">{escape(record["task"])}</p>{episodes}</section>')


def _episode(episode: Mapping[str, Any], colors: Mapping[int, str], is_open: bool) -> str:
    steps = episode["steps"]
    strip = ""
    for step in steps:
        color = colors.get(step["group"])
        paint = f'class="g" style="{color}" ' if color else ""
        strip += f'<i {paint}title="{escape(step["action"], quote=True)}"></i>'
    won, end = episode["success"], escape(episode["ended_by"])
    outcome = f'<span class="outcome won">{end}</span>' if won else f'<span class="outcome">{end}</span>'
    rows = "".join(_row(index, step, colors) for index, step in enumerate(steps, 1))
    head = ('<tr><th>#</th><th>observation</th><th>action</th><th class="number">reward</th>'
            '<th class="number advantage">A<sub>E</sub></th><th class="number advantage">A<sub>S</sub></th>'
            "<th>anchor group</th></tr>")
    return (f'<details{" open" if is_open else ""}><summary>{outcome}<span class="strip">{strip}</span>'
            f'<span class="soft">{len(steps)} steps</span></summary>'
            f'<div class="scroll"><table class="steps">{head}{rows}</table></div></details>')


def _row(index: int, step: Mapping[str, Any], colors: Mapping[int, str]) -> str:
    action = escape(step["action"])
    if not step["valid"]:
        action = f'<span class="invalid" title="invalid action">{action or "(nothing)"} \u2717</span>'
    reward = f'{step["reward"]:g}' if step["reward"] else "\u00b7"
    badge = ""
    if step["group"] >= 0:
        color = colors.get(step["group"])
        paint = f'g" style="{color}' if color else ""
        others = f'{step["shared"]} more' if step["shared"] else "alone"
        badge = f'<span class="badge {paint}">#{step["group"]} \u00b7 {others}</span>'
    return (f'<tr><td class="soft">{index}</td><td>{escape(step["observation"])}</td><td>{action}</td>'
            f'<td class="number">{reward}</td>{_advantage(step["episode"])}{_advantage(step["step"])}'
            f"<td>{badge}</td></tr>")


def _advantage(value: float) -> str:
    return f'<td class="number advantage" style="{tint(value)}">{value:+.2f}</td>'
