"""The frame of the report: one column of cards, light or dark as the reader likes, no script, no download."""

from __future__ import annotations

from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """A complete HTML document that needs nothing but itself."""
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n")


def card(title: str, note: str, content: str) -> str:
    """A chart or table with its heading and one line on how to read it."""
    return (f'<section class="card"><h3>{escape(title)}</h3><p class="soft">{escape(note)}</p>'
            f"{content}</section>")


def tile(value: str, label: str, kind: str = "") -> str:
    """A headline number."""
    text = f'<b>{escape(value)}</b><span class="soft">{escape(label)}</span>'
    return f'<div class="card tile {kind}">{text}</div>'
