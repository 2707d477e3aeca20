"""Passages and their retrieval: the protocol of a retriever, and BM25 in this process."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.base import EnvError
from envs.records import Record, json_lines

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrievable text; `contents` is its title, a line break and the text."""

    id: str
    contents: str

    @classmethod
    def from_record(cls, record: Record, index: int) -> Passage:
        """The passage in a record, with `index` for an id it does not have; raises EnvError if it is none."""
        row = record.fields
        names = ("contents",) if "contents" in row else ("title", "text")
        for name in names:
            if not isinstance(row.get(name), str):
                raise EnvError(
                    f"search: {record.place} needs a JSON object with `contents`, or `title` and `text`; "
                    f"{name} is {row.get(name)!r:.40}, not text"
                )
        id = row.get("id")
        return cls(str(index if id is None else id), "\n".join(row[name] for name in names))

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
    """Finds passages; `search` is deterministic and returns one list per query."""

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]: ...


def read_corpus(path: Path) -> list[Passage]:
    """The passages of a jsonl file with `contents`, or `title` and `text`, in every row, and optionally `id`.

    Raises EnvError with the file and the line that cannot be used.
    """
    if not path.is_file():
        raise EnvError(f"search: there is no corpus {path}; give a jsonl file with `contents`")
    passages = [Passage.from_record(record, i) for i, record in enumerate(json_lines(path))]
    if not passages:
        raise EnvError(f"search: the corpus {path} is empty; add passages")
    return passages


def words(text: str) -> list[str]:
    """Lower-case words without accents: the terms of BM25."""
    lowered = text.lower()
    if not lowered.isascii():
        decomposed = unicodedata.normalize("NFKD", lowered)
        lowered = "".join(c for c in decomposed if not unicodedata.combining(c))
    return _WORD.findall(lowered)


class Bm25:
    """BM25 (Lucene's variant; k1 = 0.9, b = 0.4 as Pyserini's) over all words; titles count three times."""

    name = "bm25"

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s  # imported here, because a remote retriever does not need it

        self.passages = tuple(passages)
        self._index: Any = bm25s.BM25(k1=0.9, b=0.4)
        counted = [words(f"{passage.title} {passage.title} {passage.contents}") for passage in passages]
        if not any(counted):
            raise EnvError("search: no passage of the corpus has a word in it; give another corpus")
        self._index.index(counted, show_progress=False)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The `topk` best matches for each query; ties are broken by position in the corpus."""
        found: list[list[Hit]] = []
        for query in queries:
            known = [word for word in words(query) if word in self._index.vocab_dict]
            scores = self._index.get_scores(known) if known else np.zeros(0)
            matching = np.flatnonzero(scores)  # partitioning many equal scores, the zeros, is slow
            places = matching[best(scores[matching], topk)]
            found.append([Hit(self.passages[i], float(scores[i])) for i in places])
        return found


def best(scores: NDArray[np.floating[Any]], count: int) -> list[int]:
    """Positions of the `count` highest scores, best first; ties are broken by position."""
    count = min(count, len(scores))
    if count < 1:
        return []
    limit = np.partition(scores, -count)[-count]
    candidates = np.flatnonzero(scores >= limit)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count].tolist()


@lru_cache(maxsize=2)
def open_corpus(path: str) -> Bm25:
    """The index of a corpus, built once per process."""
    return Bm25(read_corpus(Path(path)))
