"""Exact match, as in the open-domain question answering benchmarks and Search-R1."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces.

    Accents and non-ASCII punctuation are kept, as in Search-R1 (`qa_em.normalize_answer`).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golden: Iterable[str]) -> bool:
    """Whether `answer` equals one of the `golden` answers after normalization."""
    given = normalize(answer)
    return any(given == normalize(one) for one in golden)
