"""The shop's search engine: Lucene's BM25 over titles, descriptions, first bullets and options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import bm25s
import numpy as np
import Stemmer

from envs.webshop.catalog import Product

RESULTS = 50
LONGEST = 10_000  # characters of a query; the rest is ignored (Lucene refuses more than 1,024 words)
CACHED = 512  # longest query, in characters, whose result is cached
K1, B = 0.9, 0.4  # Anserini's, which WebShop searches with

_STOP_WORD_TEXT = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they
this to was will with
"""
_STOP_WORDS = frozenset(_STOP_WORD_TEXT.split())
# Words as in Lucene's standard tokenizer: 3.5 and don't are one, heavy-duty is two.
_WORD = re.compile(r"\w+(?:(?:(?<=\d)[.,](?=\d)|(?<=[^\W\d_])['\u2019.](?=[^\W\d_]))\w+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$")


class BM25:
    """Lucene's BM25 with its English analysis; ties are broken by catalog order.

    A query gives the positions of the best RESULTS products, best first.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self._stem = Stemmer.Stemmer("porter").stemWord
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        documents = [self._terms(document(product)) for product in products]
        self._known = frozenset(term for terms in documents for term in terms)
        if self._known:
            self._index.index(documents, show_progress=False)
        self._cached = lru_cache(maxsize=8192)(self._ranked)

    def __call__(self, query: str) -> tuple[int, ...]:
        return self._cached(query) if len(query) <= CACHED else self._ranked(query)

    def _ranked(self, query: str) -> tuple[int, ...]:
        terms = [term for term in self._terms(query[:LONGEST]) if term in self._known]
        if not terms:
            return ()
        scores = self._index.get_scores(terms)
        found = np.flatnonzero(scores)
        if len(found) > RESULTS:
            least = np.partition(scores[found], -RESULTS)[-RESULTS]
            found = found[scores[found] >= least]
        best = np.argsort(-scores[found], kind="stable")[:RESULTS]
        return tuple(found[best].tolist())

    def _terms(self, text: str) -> list[str]:
        words = (_POSSESSIVE.sub("", word) for word in _WORD.findall(text.lower()))
        return [self._stem(word) for word in words if word not in _STOP_WORDS]


def document(product: Product) -> str:
    """The indexed text of a product."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    bullet = product.bullets[0] if product.bullets else ""
    return " ".join([product.title, product.description, bullet, options]).lower()
