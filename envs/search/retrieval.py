"""Passages, and how the best of them are found for a query: the protocol, and BM25 in this process."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.base import EnvironmentError

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be found; `contents` is its title, a line break and the text."""

    id: str
    contents: str

    @property
    def title(self) -> str:
        """The first line, without the quotation marks that wiki-18 puts around it."""
        return self.contents.partition("\n")[0].strip().strip('"')


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found, with the retriever's score: higher is better."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Finds passages; `search` is deterministic, and returns one list for each query."""

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]: ...


def read_corpus(path: Path) -> list[Passage]:
    """The passages of a jsonl file with `contents`, or `title` and `text`, in every row (`id` if it has one).

    Raises EnvironmentError naming the file and line that cannot be read.
    """
    if not path.is_file():
        raise EnvironmentError(f"search: there is no corpus {path}; give a jsonl file with `contents`")
    passages: list[Passage] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                passages.append(_passage(line, f"{path}:{number}", len(passages)))
    if not passages:
        raise EnvironmentError(f"search: the corpus {path} is empty")
    return passages


def _passage(line: str, where: str, number: int) -> Passage:
    try:
        row = json.loads(line)
        contents = row["contents"] if "contents" in row else f"{row['title']}\n{row['text']}"
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentError(
            f"search: {where} needs a JSON object with `contents`, or `title` and `text`: {error!r}"
        ) from None
    return Passage(str(row.get("id", number)), str(contents))


def words(text: str) -> list[str]:
    """Lower-case words without accents: what BM25 counts."""
    lowered = text.lower()
    if not lowered.isascii():
        decomposed = unicodedata.normalize("NFKD", lowered)
        lowered = "".join(c for c in decomposed if not unicodedata.combining(c))
    return _WORD.findall(lowered)


class Bm25:
    """BM25 (Lucene's variant; k1 = 0.9, b = 0.4 as Pyserini's) over all words; titles count three times."""

    name = "bm25"

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s  # here, as a remote retriever needs none

        self.passages = tuple(passages)
        self._index: Any = bm25s.BM25(k1=0.9, b=0.4)
        counted = [words(f"{passage.title} {passage.title} {passage.contents}") for passage in passages]
        self._index.index(counted, show_progress=False)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The `topk` best for each query; equal scores go by place in the corpus, no match finds nothing."""
        return [self._search(query, topk) for query in queries]

    def _search(self, query: str, topk: int) -> list[Hit]:
        known = [word for word in words(query) if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        matching = np.flatnonzero(scores)  # partitioning many equal scores, the zeros, is slow
        return [Hit(self.passages[i], float(scores[i])) for i in matching[best(scores[matching], topk)]]


def best(scores: NDArray[np.floating[Any]], count: int) -> list[int]:
    """Places of the `count` highest scores, best first, equal ones by place."""
    count = min(count, len(scores))
    if count < 1:
        return []
    limit = np.partition(scores, -count)[-count]
    candidates = np.flatnonzero(scores >= limit)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count].tolist()


@lru_cache(maxsize=2)
def open_corpus(path: str) -> Bm25:
    """The index of a corpus, made once in a process."""
    return Bm25(read_corpus(Path(path)))
