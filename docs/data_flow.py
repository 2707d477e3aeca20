"""Draws the picture of ARCHITECTURE.md: `python docs/data_flow.py` writes docs/data_flow.svg."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

INK, SOFT, RED = "#1d2939", "#475467", "#c4320a"
STYLE = f"""
text {{ font: 13px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: {INK}; }}
text {{ text-anchor: middle; }}
.head {{ font-size: 14px; font-weight: 600; text-anchor: start; }} .name {{ font-weight: 600; }}
.soft {{ fill: {SOFT}; font-size: 12px; }} .red {{ fill: {RED}; font-size: 12px; font-weight: 600; }}
.left {{ text-anchor: start; }} .right {{ text-anchor: end; }}
.box {{ fill: #fff; stroke: {SOFT}; stroke-width: 1.2; }} .disk {{ stroke-dasharray: 5 3; }}
path {{ fill: none; stroke: {SOFT}; stroke-width: 1.4; }}
path.red {{ fill: none; stroke: {RED}; stroke-width: 2; }}
"""


def band(
    y: int, height: int, colors: tuple[str, str], title: str, where: str, inside: tuple[int, int]
) -> str:
    """A part of the picture: who works in it, and the folders that hold the code, between two x."""
    return (
        f'<rect x="16" y="{y}" width="908" height="{height}" rx="12" '
        f'fill="{colors[0]}" stroke="{colors[1]}"/>'
        f'<text class="head" x="{inside[0]}" y="{y + 25}">{escape(title)}</text>'
        f'<text class="soft right" x="{inside[1]}" y="{y + 25}">{escape(where)}</text>'
    )


def box(x: int, y: int, width: int, name: str, note: str, kind: str = "") -> str:
    """A box of height 54 with a name and a line below; dashed for what lies on disk."""
    middle = x + width // 2
    return (
        f'<rect class="box {kind}" x="{x}" y="{y}" width="{width}" height="54" rx="8"/>'
        f'<text class="name" x="{middle}" y="{y + 23}">{escape(name)}</text>'
        f'<text class="soft" x="{middle}" y="{y + 41}">{note}</text>'
    )


def arrow(path: str, kind: str = "", both: bool = False) -> str:
    """A line with a head at its end, or at both."""
    head = "red" if kind else "gray"
    start = f' marker-start="url(#{head})"' if both else ""
    return f'<path class="{kind}" d="{path}" marker-end="url(#{head})"{start}/>'


def label(x: int, y: int, text: str, kind: str = "soft") -> str:
    """Words beside an arrow."""
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def marker(name: str, color: str) -> str:
    """An arrow head."""
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto-start-reverse" markerUnits="userSpaceOnUse"><path d="M0 0L8 4L0 8z" '
        f'style="fill:{color};stroke:none"/></marker>'
    )


def svg(height: int, title: str, parts: Sequence[str]) -> str:
    """A picture of `parts`, 940 wide."""
    body = "".join([marker("gray", SOFT), marker("red", RED), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 {height}" role="img" '
        f'aria-label="{title}">'
        f'<style>{STYLE}</style><rect width="940" height="{height}" fill="#fff"/>{body}</svg>\n'
    )


def picture() -> str:
    """One iteration, clockwise: episodes above, learning below, weights back to the engine on the left."""
    parts = [
        band(12, 232, ("#eef4ff", "#b2ccff"), "Rollout: on the leader rank, with asyncio",
             "tasks.py, envs/, rollout/, storage/", (34, 906)),
        band(304, 118, ("#f3faee", "#b8e0a0"), "Learning: on every rank of the launch",
             "types.py, algorithms/, batching.py, learner/, weights/, kernels/", (122, 804)),
        box(360, 54, 170, "tasks", "of this iteration"),
        box(700, 54, 190, "environments", "in worker processes"),
        box(40, 170, 190, "SGLang engine", "samples token by token"),
        box(360, 170, 170, "Collector", "one asyncio task per episode"),
        box(700, 170, 190, "journal", "groups of complete episodes", "disk"),
        box(732, 346, 166, "RowTable", "one row per model call"),
        box(548, 346, 154, "estimate", "A<tspan dy='3' font-size='9'>E</tspan><tspan dy='-3'> + </tspan>"
            "&#969; A<tspan dy='3' font-size='9'>S</tspan><tspan dy='-3'>, Eq. 3-8</tspan>"),
        box(376, 346, 142, "pack", "micro-batches"),
        box(200, 346, 146, "update_policy", "megatron-core, Eq. 9"),
        box(40, 346, 130, "export", "whole tensors"),
        box(200, 462, 146, "checkpoints", "full state", "disk"),
        box(376, 462, 142, "metrics, report", "of every iteration", "disk"),
        arrow("M445 108V168"),
        arrow("M232 197H358", both=True),
        label(296, 188, "prompt ids"), label(296, 216, "ids, log-probs"),
        arrow("M532 180L698 92", both=True),
        label(640, 150, "action, observation", "soft left"),
        arrow("M532 197H698"), label(620, 188, "Group"),
        arrow("M815 226V344"), label(825, 278, "to all ranks", "soft left"),
        arrow("M730 373H704"), arrow("M546 373H520"), arrow("M374 373H348"), arrow("M198 373H172"),
        arrow("M105 344V226", "red"), label(117, 278, "weights, version i + 1", "red left"),
        arrow("M273 402V460"), arrow("M320 402V440H447V460"),
    ]  # fmt: skip
    return svg(532, "Data flow of one iteration", parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
