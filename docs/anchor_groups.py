"""Draws the anchor groups of docs/concepts.md: `python docs/anchor_groups.py` writes docs/anchor_groups.svg.

The steps of the four episodes of advantage_levels.py, sorted by the state that they were taken from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from advantage_levels import COLORS, EPISODES, SETTINGS, advantages, drawing, level, signed, words

LINE, TOP, WIDTH = 26, 66, 940
COLUMNS = (36, 486)  # left edges of the cards


def returns() -> list[tuple[str, str, float]]:
    """State, name and discounted return of every step of EPISODES, one episode after another."""
    found: list[tuple[str, str, float]] = []
    for number, (moves, won) in enumerate(EPISODES, start=1):
        for t, (state, action) in enumerate(moves):
            left = len(moves) - 1 - t
            found.append((state, f"episode {number}: {action}", won * SETTINGS.gamma**left))
    return found


def card(x: int, y: int, state: str, rows: list[tuple[str, float, float]]) -> str:
    """The steps (name, return, A_S) that were taken from `state`, and the mean of their returns."""
    height, mean = 44 + LINE * len(rows), float(np.mean([row[1] for row in rows]))
    parts = [
        f'<rect x="{x}" y="{y}" width="418" height="{height}" rx="8" fill="{COLORS[state]}"/>',
        words(x + 16, y + 24, state, "name", "start"),
        words(x + 250, y + 24, "return", "soft", "end"),
        words(x + 402, y + 24, f"less the mean, {mean:.2f}", "soft", "end"),
    ]
    for number, (name, value, advantage) in enumerate(rows):
        at = y + 52 + LINE * number
        parts += [
            words(x + 16, at, name, "", "start"),
            words(x + 250, at, f"{value:.2f}", "", "end"),
            words(x + 402, at, f"{level('S')}= {signed(advantage)}", "value", "end"),
        ]
    return "".join(parts)


def picture() -> str:
    """A card for each state; the returns of its steps are compared with one another, and with no others."""
    steps, found = returns(), advantages().step.tolist()
    groups: dict[str, list[tuple[str, float, float]]] = {state: [] for state in COLORS}
    for (state, name, value), advantage in zip(steps, found, strict=True):
        groups[state].append((name, value, advantage))
    parts = [words(36, 40, "The same steps, by the state that they were taken from", "head", "start")]
    bottoms = [TOP, TOP]
    for state, rows in groups.items():
        side = bottoms.index(min(bottoms))
        parts.append(card(COLUMNS[side], bottoms[side], state, rows))
        bottoms[side] += 44 + LINE * len(rows) + 16
    height = max(bottoms) + 8
    label = "The steps of four episodes by state, with their returns and advantages"
    return drawing(WIDTH, height, label, parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
