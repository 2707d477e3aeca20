"""Draws the picture of docs/concepts.md: `python docs/advantage_levels.py` writes docs/advantage_levels.svg.

Four episodes of one task, and the two advantages that the estimator gives their steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from envs.base import Task
from gigpo_mega.algorithms.advantage import estimate
from gigpo_mega.algorithms.anchors import anchor_key
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, Group, RowTable, Step, Trajectory

INK, SOFT = "#1d2939", "#475467"
COLORS = {"hall": "#b2ccff", "kitchen": "#b8e0a0", "bedroom": "#fedf89", "kitchen, mug": "#e3b5f5"}
# (state, action) of every step, and whether the last one put the mug on the desk.
EPISODES = [
    ([("hall", "go to kitchen"), ("kitchen", "take mug"), ("kitchen, mug", "put on desk")], True),
    ([("hall", "go to bedroom"), ("bedroom", "go to hall"), ("hall", "go to kitchen"), ("kitchen", "look")],
     False),
    ([("hall", "go to kitchen"), ("kitchen", "look"), ("kitchen", "take mug"),
      ("kitchen, mug", "put on desk")], True),
    ([("hall", "go to bedroom"), ("bedroom", "look"), ("bedroom", "go to hall"), ("hall", "look")], False),
]  # fmt: skip
SETTINGS = AdvantageConfig(normalization="mean", gamma=0.95, omega=1.0, invalid_penalty=0.0)
WIDTH, HEIGHT = 960, 560


def advantages() -> Advantages:
    """What the estimator gives every step of EPISODES, one episode after another."""
    task, none = Task("mug", "pick", "mug"), np.zeros(0, np.int32)
    trajectories: list[Trajectory] = []
    for moves, won in EPISODES:
        last = len(moves) - 1
        steps = tuple(
            Step(none, none, none.astype(np.float32), float(won and t == last), True,
                 anchor_key(state, task.id), 0, state, action, success=won and t == last)
            for t, (state, action) in enumerate(moves)
        )  # fmt: skip
        trajectories.append(Trajectory(task, steps, float(won), won, "success" if won else "limit"))
    return estimate(RowTable.from_groups([Group(task, tuple(trajectories))]), SETTINGS)


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{text}</text>'


def drawing(width: int, height: int, label: str, parts: list[str]) -> str:
    """The SVG of `parts` on a white ground; screen readers say `label`."""
    style = (
        f'text{{font:14px -apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:{INK}}}'
        f".head{{font-size:16px;font-weight:600}}.name,.value{{font-weight:600}}.soft{{fill:{SOFT}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}">'
        f'<style>{style}</style><rect width="{width}" height="{height}" rx="8" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def level(name: str) -> str:
    """`A` with an index."""
    return f'A<tspan dy="3" font-size="10">{name}</tspan><tspan dy="-3"> </tspan>'


def signed(value: float) -> str:
    """Two digits with a sign; no sign for what rounds to 0."""
    return "0" if abs(value) < 0.005 else f"{value:+.2f}".replace("-", "\u2212")


def picture() -> str:
    """A row for each episode, a box for each step; steps from the same state share a color."""
    found, row, parts = advantages(), 0, list[str]()
    parts.append(words(24, 34, "Four episodes of one task, from the same start: a group", "head", "start"))
    parts.append(words(812, 34, "episode", "name"))
    for index, (moves, won) in enumerate(EPISODES):
        y = 56 + 112 * index
        parts.append(words(24, y + 34, f"episode {index + 1}", "name", "start"))
        parts.append(words(24, y + 54, "success, R = 1" if won else "failure, R = 0", "soft", "start"))
        for t, (state, action) in enumerate(moves):
            x = 140 + 152 * t
            parts.append(f'<rect x="{x}" y="{y}" width="138" height="60" rx="8" fill="{COLORS[state]}"/>')
            parts.append(words(x + 69, y + 24, state, "name") + words(x + 69, y + 44, action))
            parts.append(words(x + 69, y + 80, f"{level('S')}= {signed(float(found.step[row]))}", "value"))
            row += 1
        at_episode = signed(float(found.episode[row - 1]))
        parts.append(f'<rect x="752" y="{y}" width="120" height="60" rx="8" fill="#fff" stroke="{SOFT}"/>')
        parts.append(words(812, y + 36, f"{level('E')}= {at_episode}", "value"))
    y = 530
    parts.append(words(24, y - 4, "same color: same state, an anchor group", "soft", "start"))
    for index, (state, color) in enumerate(COLORS.items()):
        x = 350 + 110 * index
        parts.append(f'<rect x="{x}" y="{y - 18}" width="16" height="16" rx="3" fill="{color}"/>')
        parts.append(words(x + 24, y - 4, state, "soft", "start"))
    label = "Four episodes, their advantage as episodes and that of each of their steps"
    return drawing(WIDTH, HEIGHT, label, parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
