"""Exact match, as the open-domain question answering benchmarks and Search-R1 score it."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces.

    Letters keep their accents and other punctuation stays, as upstream (`qa_em.normalize_answer`).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golden: Iterable[str]) -> bool:
    """Whether `answer` equals one of the `golden` answers after normalisation."""
    given = normalize(answer)
    return any(given == normalize(one) for one in golden)
