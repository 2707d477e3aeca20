"""Encoding by a cache of pieces: byte-level tokenizers encode each piece of a text by itself.

Prompts of agents repeat words. Where a tokenizer cuts a text by a regular expression before it merges bytes,
a dictionary of pieces gives the same ids in less time (docs/benchmarks/bench_rollout.json).
"""

from __future__ import annotations

import json
import re
from itertools import product
from random import Random

from tokenizers import Tokenizer

_MOST_PIECES = 200_000
_PRINTABLE = "".join(map(chr, range(32, 127))) + "\n\r\t"
_PLAIN = re.compile(f"[{re.escape(_PRINTABLE)}]*")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CLASSES = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9"}  # in printable ASCII


class PieceEncoder:
    """Encodes printable ASCII as `fast` does without its special tokens, and other text by `fast` itself.

    Made by `of`, which tries it on every pair of characters.
    """

    def __init__(self, fast: Tokenizer, pattern: str, digits: bool) -> None:
        self._fast = fast
        self._pattern = re.compile(_ascii(pattern))
        added = sorted(fast.get_added_tokens_decoder().items(), key=lambda item: -len(item[1].content))
        self._added = {token.content: [i] for i, token in added}
        words = [*map(re.escape, self._added), *(["[0-9]"] if digits else [])]
        self._between = re.compile(f"({'|'.join(words) or '(?!)'})")
        self._known: dict[str, list[int]] = {}

    @classmethod
    def of(cls, fast: Tokenizer) -> PieceEncoder | None:
        """The encoder for `fast`; None if it does not cut texts in a way that is known here."""
        cut = _cut(fast)
        added = fast.get_added_tokens_decoder().values()
        if cut is None or any(token.lstrip or token.rstrip or token.single_word for token in added):
            return None
        try:
            made = cls(fast, *cut)
        except re.error:
            return None
        if made._pattern.groups:
            return None
        text = _probe()
        return made if made.encode(text) == fast.encode(text, add_special_tokens=False).ids else None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        if not _PLAIN.fullmatch(text):
            return self._fast.encode(text, add_special_tokens=False).ids
        if len(self._known) > _MOST_PIECES:
            self._known.clear()
        ids: list[int] = []
        for part in self._between.split(text):
            if (token := self._added.get(part)) is not None:
                ids += token
                continue
            for piece in self._pattern.findall(part):
                if (found := self._known.get(piece)) is None:
                    self._known[piece] = found = self._fast.encode(piece, add_special_tokens=False).ids
                ids += found
        return ids


def _cut(fast: Tokenizer) -> tuple[str, bool] | None:
    """The pattern that cuts a text into pieces, and whether each digit is cut out before.

    None if it is not a pattern alone, or if the text is changed before.
    """
    normalizer, step = (json.loads(part.__getstate__()) if part is not None else {"type": "none"}
                        for part in (fast.normalizer, fast.pre_tokenizer))  # fmt: skip
    if normalizer["type"] not in ("none", "NFC"):  # which leaves ASCII as it is
        return None
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    digits = steps[0] == {"type": "Digits", "individual_digits": True}
    match steps[digits:]:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return _GPT2, digits
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern, digits
        case _:
            return None


def _ascii(pattern: str) -> str:
    """`pattern` with Unicode's classes as they are in printable ASCII, for Python."""
    written, within = "", False
    for part in re.findall(r"\\p\{\w+\}|\\.|.", pattern, re.DOTALL):
        letters = _CLASSES.get(part)
        written += part if letters is None else letters if within else f"[{letters}]"
        within = part == "[" or (within and part != "]")
    return written


def _probe() -> str:
    """Every pair of characters, and runs of white space, digits and letters as texts have them."""
    random = Random(0)
    runs = ["".join(random.choices(" \n\r\tab1.'", k=random.randrange(1, 8))) for _ in range(2000)]
    return "".join("".join(pair) for pair in product(_PRINTABLE, repeat=2)) + "".join(runs)
