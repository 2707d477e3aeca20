"""A group as one page that loads nothing: its episodes side by side, steps of one state linked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import numpy as np

from gigpo_mega.telemetry.report.page import HUES, page, tint
from gigpo_mega.trace.recorded import FAR, Place, TracedGroup, TracedStep
from gigpo_mega.trace.text import conversation, farthest, mean_logprob, outcome, scored, shown, weights

STYLE = Path(__file__).with_name("trace.css").read_text(encoding="utf-8")
# Least log-prob of each shade but the last: probabilities of 90%, 50%, 20% and 5%.
SHADES = (-0.105, -0.693, -1.609, -2.996)
_MISSING = "\u25a1"  # of a token that is only a part of a character


def render(traced: TracedGroup) -> str:
    """The page of a group as one HTML document."""
    colors = {traced.at(members[0]).anchor: hue for members, hue in zip(traced.anchors(), HUES, strict=False)}
    episodes = "".join(_episode(traced, number, colors) for number in range(len(traced.episodes)))
    title = f"Iteration {traced.iteration}, group {traced.number}"
    task = f"{traced.group.task.kind.replace('_', ' ')}: {traced.group.task.id}"
    body = (f'<h1>{title}</h1><p class="soft task">{_text(task)} \u00b7 {_text(traced.fate)}</p>'
            f'<p class="soft task">{_sentence(scored(traced))}.</p>{_legend()}'
            f'<div class="side">{episodes}</div>')  # fmt: skip
    return page(f"{title} - gigpo-mega", body, STYLE)


def shade(logprob: float) -> int:
    """0 for a token that was almost certain, up to 4 for an unlikely one."""
    return sum(logprob < bound for bound in SHADES)


def _legend() -> str:
    ramp = "".join(f'<span class="t{level}"></span>' for level in range(len(SHADES) + 1))
    return (
        f'<p class="key">Sampled tokens: likely <span class="ramp">{ramp}</span> unlikely under the policy '
        'that sampled them, <span class="far">underlined</span> if the learner\'s log-prob is more than '
        f"{FAR:g} from the engine's. A color at the left edge: steps taken from the "
        "same anchor state; \u2713 and \u2717 say whether their episodes succeeded.</p>"
    )


def _episode(traced: TracedGroup, number: int, colors: Mapping[int, int]) -> str:
    episode, steps = traced.group.trajectories[number], traced.episodes[number]
    kind = "outcome won" if episode.success else "outcome"
    values = steps[0].advantages if steps else None
    advantage = f" \u00b7 A<sub>E</sub> {values[0]:+.3f}" if values else ""
    head = (f'<h2>Episode {number}<span class="{kind}">{escape(outcome(episode))}</span></h2>'
            f'<p class="soft">{len(steps)} steps{advantage}</p>')  # fmt: skip
    return f"<section>{head}{''.join(_step(traced, step, colors) for step in steps)}</section>"


def _step(traced: TracedGroup, step: TracedStep, colors: Mapping[int, int]) -> str:
    hue = colors.get(step.anchor)
    paint = "" if hue is None else f' style="--g:hsl({hue} 58% 46%)"'
    prompt = (f'<details><summary>whole prompt, {len(step.step.prompt_ids)} tokens</summary>'
              f'<p class="said">{_text(step.prompt)}</p></details>')  # fmt: skip
    parts = (
        f'<p class="said">{_text(step.step.observation) or "(nothing)"}</p>',
        prompt,
        f'<p class="said agent">{"".join(_token(*values) for values in _values(step))}</p>',
        _table(step),
        _members(traced, step),
    )
    return (f'<article class="card step" id="{_name(step.place)}"{paint}>{_bar(traced, step)}'
            f'{"".join(parts)}</article>')  # fmt: skip


def _values(step: TracedStep) -> Iterator[tuple[str, float, float, float, int]]:
    """Of each token its text, log-prob of engine and learner, the difference, and the weights' version."""
    nothing = np.full(len(step.tokens), np.nan)
    learner, apart = (nothing if x is None else x for x in (step.learner, step.apart))
    columns = (step.step.logprobs, learner, apart, step.step.versions)
    return zip(step.tokens, *(column.tolist() for column in columns), strict=True)


def _token(text: str, engine: float, learner: float, apart: float, version: int) -> str:
    look = f"t{shade(engine)}" + (" far" if abs(apart) > FAR else "")
    said = f"{engine:.3f}" + ("" if math.isnan(learner) else f", learner {learner:.3f}")
    return f'<span class="{look}" title="{said}, weights {version}">{_text(text) or _MISSING}</span>'


def _table(step: TracedStep) -> str:
    """The numbers of every token."""
    known = step.learner is not None
    names = ["token", "engine", *(["learner", "apart"] if known else []), "weights"]
    rows = list[str]()
    for text, engine, learner, apart, version in _values(step):
        cells = [f"{engine:.3f}", *([f"{learner:.3f}", f"{apart:+.2g}"] if known else []), str(version)]
        far = ' class="far"' if abs(apart) > FAR else ""
        token = _text(text).replace("\n", "\u21b5").replace(" ", "\u2423") or _MISSING
        rows.append(f"<tr{far}><th>{token}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (f"<details><summary>log-probs of {len(rows)} tokens</summary>"
            f'<table class="tokens"><tr>{head}</tr>{"".join(rows)}</table></details>')  # fmt: skip


def _bar(traced: TracedGroup, step: TracedStep) -> str:
    names = ("A<sub>E</sub>", "A<sub>S</sub>", "total")
    values = "".join(
        f'<span class="value" style="{tint(value)}">{name} {value:+.3f}</span>'
        for name, value in zip(names, step.advantages or (), strict=False)
    )
    valid = "valid" if step.step.valid else '<span class="no">invalid</span>'
    learner = ""
    if step.learner is not None:
        learner = (f"<span>learner {step.learner.mean():.3f}</span>"
                   f"<span>\u2264 {farthest(step):.2g} apart</span>")  # fmt: skip
    which = conversation(traced, step)
    return (f'<div class="bar"><b>step {step.place.step}</b>{f"<span>{which}</span>" if which else ""}'
            f"<span>{valid}</span><span>reward {step.step.reward:g}</span>{values}</div>"
            f'<div class="bar"><span>mean log-prob {mean_logprob(step):.3f}</span>{learner}'
            f"<span>weights {weights(step)}</span></div>")  # fmt: skip


def _members(traced: TracedGroup, step: TracedStep) -> str:
    others = [place for place in step.members if place != step.place]
    if not others:
        return f'<p class="soft">anchor #{step.anchor}: no other step of this state</p>'
    rows = "".join(_member(traced, place) for place in others)
    return (f"<details><summary>anchor #{step.anchor}: {len(others)} more of this state</summary>"
            f'<ul class="members">{rows}</ul></details>')  # fmt: skip


def _member(traced: TracedGroup, place: Place) -> str:
    step = traced.at(place)
    value = step.advantages[1] if step.advantages else None
    shown_value = "" if value is None else f'<span class="value" style="{tint(value)}">{value:+.3f}</span>'
    action = _text(step.step.action) or "(none)"
    won = "\u2713" if traced.trajectory(place).success else "\u2717"
    return (f'<li><a href="#{_name(place)}">episode {place.episode}, step {place.step}</a>'
            f'<span>{action}{"" if step.step.valid else " (invalid)"}, reward {step.step.reward:g} '
            f"{won}</span>{shown_value}</li>")  # fmt: skip


def _name(place: Place) -> str:
    return f"episode{place.episode}-step{place.step}"


def _sentence(text: str) -> str:
    return _text(text[:1].upper() + text[1:])


def _text(text: str) -> str:
    return escape(shown(text))
