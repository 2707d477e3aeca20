"""Draws who runs where, for docs/rollouts.md: `python docs/placements.py` writes docs/placements.svg."""

from __future__ import annotations

from html import escape
from pathlib import Path

from data_flow import arrow, box, label, svg

BLUE, GREEN = ("#eef4ff", "#b2ccff"), ("#f3faee", "#b8e0a0")


def panel(y: int, height: int, title: str, settings: str) -> str:
    """One placement."""
    return (
        f'<rect x="16" y="{y}" width="908" height="{height}" rx="12" fill="#fff" stroke="#d0d5dd"/>'
        f'<text class="head" x="34" y="{y + 26}">{escape(title)}</text>'
        f'<text class="soft right" x="906" y="{y + 26}">{escape(settings)}</text>'
    )


def machine(x: int, y: int, width: int, height: int, name: str, colors: tuple[str, str]) -> str:
    """A machine, with its name below its upper edge."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="{colors[0]}" '
        f'stroke="{colors[1]}"/><text class="soft left" x="{x + 14}" y="{y + 20}">{escape(name)}</text>'
    )


def gpus(x: int, y: int, numbers: range, *lines: str) -> str:
    """A row of GPUs, what runs on each in lines; N stands for its number."""
    found = ""
    for place, number in enumerate(numbers):
        left, height = x + 66 * place, 14 + 17 * len(lines)
        found += f'<rect class="box" x="{left}" y="{y}" width="60" height="{height}" rx="6"/>'
        for row, words in enumerate(lines):
            found += label(left + 30, y + 20 + 17 * row, words.replace("N", str(number)))
    return found


def picture() -> str:
    """A laptop, a node whose GPUs learner and engines share, and a learner with engines on other nodes."""
    parts = [
        panel(12, 138, "A laptop", "defaults"),
        machine(34, 50, 872, 86, "one machine, no GPU", BLUE),
        box(200, 64, 190, "rank 0", "learns, plays episodes"),
        box(460, 64, 170, "SGLang engine", "one process, on the CPU"),
        box(700, 64, 190, "environments", "environment.workers"),
        arrow("M392 82H458", both=True), arrow("M392 105H458", "red"),
        arrow("M295 118V128H795V120", both=True),
        panel(162, 210, "A node with GPUs: engines beside the learner", "torchrun --nproc-per-node 8"),
        machine(34, 200, 872, 160, "a node; the first of several nodes has the leader", GREEN),
        gpus(190, 232, range(8), "rank N", "engine N"),
        box(190, 300, 230, "leader", "plays episodes on all engines"),
        box(522, 300, 190, "environments", "or rollout.workers"),
        arrow("M305 298V282", both=True), arrow("M422 327H520", both=True),
        label(317, 294, "token ids", "soft left"), label(728, 256, "weights stay", "red left"),
        label(728, 272, "on their GPU: CUDA IPC", "red left"),
        panel(384, 262, "Engines on nodes of their own", "engine.placement separate, rollout.pool ray"),
        machine(34, 422, 330, 212, "nodes of the learner, by torchrun", GREEN),
        gpus(52, 454, range(4), "rank N"),
        box(52, 560, 170, "leader", "hands out groups"),
        machine(540, 422, 366, 98, "a node of the Ray cluster", BLUE),
        gpus(556, 454, range(3), "engine N"),
        box(776, 446, 122, "rollout worker", "plays"),
        machine(540, 536, 366, 98, "another one", BLUE),
        gpus(556, 568, range(3, 6), "engine N"),
        box(776, 566, 122, "rollout worker", "plays"),
        arrow("M316 470H554", "red"), arrow("M390 470V584H554", "red"),
        label(372, 462, "weights: broadcast", "red left"),
        arrow("M224 606H774", both=True), arrow("M430 606V510H837V502"),
        label(440, 624, "whole groups", "soft left"),
        arrow("M774 470H750", both=True), arrow("M774 584H750", both=True),
    ]  # fmt: skip
    return svg(658, "Who runs where in three placements", parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
