"""Recorded episodes as HTML: the states they share in colour, the two advantages of every step beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_HUES = (212, 28, 152, 268, 350, 48, 184, 310, 96, 236)  # told apart in light and dark, neighbours far apart
_RECORDS = 3


def sample(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first, the middle and the last record."""
    if len(records) <= _RECORDS:
        return list(records)
    return [records[0], records[len(records) // 2], records[-1]]


def show(record: Mapping[str, Any]) -> str:
    """One recorded group: a strip of states per episode, its steps behind a fold; the first stands open."""
    colours = _colours(record)
    episodes = "".join(
        _episode(episode, colours, is_open=index == 0) for index, episode in enumerate(record["episodes"])
    )
    kind = record["kind"].replace("_", " ")
    return (f'<section class="card record"><h3>Iteration {record["step"]}: {escape(kind)}</h3>'
            f'<p class="soft mono">{escape(record["task"])}</p>{episodes}</section>')


def _colours(record: Mapping[str, Any]) -> dict[int, str]:
    """A colour for each of the most shared anchor groups in sight; the rest stay grey."""
    steps = [step for episode in record["episodes"] for step in episode["steps"]]
    seen = Counter(step["group"] for step in steps if step["shared"])
    common = [group for group, count in seen.most_common(len(_HUES)) if count > 1]
    return {group: f"--g:hsl({hue} 58% 46%)" for group, hue in zip(common, _HUES, strict=False)}


def _episode(episode: Mapping[str, Any], colours: Mapping[int, str], is_open: bool) -> str:
    steps = episode["steps"]
    strip = "".join(_cell(step, colours) for step in steps)
    won, end = episode["success"], escape(episode["ended_by"])
    outcome = f'<span class="outcome won">{end}</span>' if won else f'<span class="outcome">{end}</span>'
    rows = "".join(_row(index, step, colours) for index, step in enumerate(steps, 1))
    head = ('<tr><th>#</th><th>observation</th><th>action</th><th class="number">reward</th>'
            '<th class="number advantage">A<sub>E</sub></th><th class="number advantage">A<sub>S</sub></th>'
            "<th>anchor group</th></tr>")
    return (f'<details{" open" if is_open else ""}><summary>{outcome}<span class="strip">{strip}</span>'
            f'<span class="soft">{len(steps)} steps</span></summary>'
            f'<div class="scroll"><table class="steps">{head}{rows}</table></div></details>')


def _cell(step: Mapping[str, Any], colours: Mapping[int, str]) -> str:
    colour = colours.get(step["group"])
    paint = f'class="g" style="{colour}" ' if colour else ""
    return f'<i {paint}title="{escape(step["action"], quote=True)}"></i>'


def _row(index: int, step: Mapping[str, Any], colours: Mapping[int, str]) -> str:
    action = escape(step["action"])
    if not step["valid"]:
        action = f'<span class="invalid" title="invalid action">{action or "(nothing)"} \u2717</span>'
    reward = f'{step["reward"]:g}' if step["reward"] else "\u00b7"
    return (f'<tr><td class="soft">{index}</td><td>{escape(step["observation"])}</td><td>{action}</td>'
            f'<td class="number">{reward}</td>{_advantage(step["episode"])}{_advantage(step["step"])}'
            f"<td>{_badge(step, colours)}</td></tr>")


def _advantage(value: float) -> str:
    """A number on a tint: green above zero, red below, deeper up to 2."""
    strength = round(min(abs(value) / 2, 1) * 34)
    colour = "--won" if value > 0 else "--lost"
    tint = f"background:color-mix(in srgb, var({colour}) {strength}%, transparent)" if strength else ""
    return f'<td class="number advantage" style="{tint}">{value:+.2f}</td>'


def _badge(step: Mapping[str, Any], colours: Mapping[int, str]) -> str:
    if step["group"] < 0:
        return ""
    colour = colours.get(step["group"])
    paint = f'g" style="{colour}' if colour else ""
    others = f'{step["shared"]} more' if step["shared"] else "alone"
    return f'<span class="badge {paint}">#{step["group"]} \u00b7 {others}</span>'
