"""The page of an experiment: what came out, and how sure it is; one file that loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gigpo_mega.experiment.spec import Spec
from gigpo_mega.experiment.tables import state, tables
from gigpo_mega.telemetry.report.page import card, page

_TITLES = {
    "curves": (
        "Learning curves",
        "Mean over seeds of a moving mean, and its 95% interval. Gray: the reference.",
    ),
    "differences": (
        "Differences",
        "Paired by seed, 95% interval. Blue: clear of 0, also by the exact test. Ticks: single seeds.",
    ),
    "mechanism": ("Mechanism by iteration", "Means over seeds."),
    "cost": ("Cost", "Seconds depend on what else the machine did."),
}


def render(name: str, spec: Spec, summary: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The HTML document with `pictures`, which are PNGs."""
    lines = (f'<p class="soft">{escape(line)}</p>' for line in state(spec, summary))
    parts = [f"<h1>{escape(name)}</h1>", *lines]
    parts += [card(table.title, table.note, table.html) for table in tables(spec, summary)]
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="{picture.stem}" style="width:100%" src="data:image/png;base64,{data}">'
        parts.append(card(*_TITLES[picture.stem], image))
    return page(f"{name} - gigpo-mega", "".join(parts))
