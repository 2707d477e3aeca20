"""Text between tags, found in time linear in the length of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache


def blocks(text: str, tag: str) -> Iterator[str]:
    """The texts between <tag> and the next </tag>, in order and without overlap; case-insensitive."""
    opening, closing = opened(tag), closed(tag)
    at = 0
    while (start := opening.search(text, at)) and (end := closing.search(text, start.end())):
        yield text[start.end() : end.start()]
        at = end.end()


@lru_cache
def opened(tag: str) -> re.Pattern[str]:
    """A case-insensitive pattern for <tag>."""
    return re.compile(f"<{tag}>", re.IGNORECASE)


@lru_cache
def closed(tag: str) -> re.Pattern[str]:
    """A case-insensitive pattern for </tag>."""
    return re.compile(f"</{tag}>", re.IGNORECASE)
