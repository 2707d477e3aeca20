"""The page of the report: one column of cards, light or dark as the browser prefers, without scripts."""

from __future__ import annotations

from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")

HUES = (212, 28, 152, 268, 350, 48, 184, 310, 96, 236)  # of anchor groups; distinct in light and dark mode


def tint(value: float) -> str:
    """The style of an advantage: a background green above zero, red below, deeper up to 2."""
    strength = round(min(abs(value) / 2, 1) * 34)
    color = "--won" if value > 0 else "--lost"
    return f"background:color-mix(in srgb, var({color}) {strength}%, transparent)" if strength else ""


def page(title: str, body: str, style: str = "") -> str:
    """A complete HTML document that loads nothing; `style` is added to the report's own."""
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<style>{STYLE}{style}</style></head><body><main>{body}</main></body></html>\n")


def card(title: str, note: str, content: str) -> str:
    """A chart or table with its heading and one line on how to read it."""
    return (f'<section class="card"><h3>{escape(title)}</h3><p class="soft">{escape(note)}</p>'
            f"{content}</section>")


def tile(value: str, label: str, kind: str = "") -> str:
    """A headline number."""
    text = f'<b>{escape(value)}</b><span class="soft">{escape(label)}</span>'
    return f'<div class="card tile {kind}">{text}</div>'
