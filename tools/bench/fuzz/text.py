"""Texts that try to become something else than text."""

from __future__ import annotations

from random import Random

from gigpo_mega.coldstart.vocabulary import EOS, PAD

PIECES = (
    EOS, PAD, "<|im_start|>", "<|im_", "end|>", "<|endoftext", "|>", "<", "assistant\n", "user\n",
    "<tool_call>", "</tool_call>", '{"name": "look", "arguments": {}}', "<think>", "</think>", "<action>",
    "</action>", "{{ messages }}", "{% raw %}", "%s {0} \\", "\ud83c", "\udca1", "\U0001f0a1", "看", "\u202e",
    "\u0301", "\ufeff", "\0", "\x1b[2J", "\r\n", "\n\n\n", " ", "  ", "\t", "a", "b", "ab", "desk 1",
    "go to desk 1", "\ue000", "0.1",
)  # fmt: skip


def hostile(rng: Random) -> str:
    """Up to twelve pieces: spelled control tokens, halves of characters, markup, templates; at times many."""
    pieces = rng.choices(PIECES, k=rng.randrange(12))
    return "".join(pieces) * (8 if rng.random() < 0.03 else 1)
