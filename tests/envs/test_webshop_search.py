"""The shop's ranking against BM25 written out, and its words against Lucene's rules."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from envs.webshop.catalog import Product
from envs.webshop.search import BM25, K1, RESULTS, B, document

WORDS = ("lamp", "sofa", "red", "blue", "clean", "easy", "small", "large", "desk", "chair", "tea", "coffee",
         "mint", "rug", "soap")  # fmt: skip


def product(title: str, **fields: object) -> Product:
    empty = {"category": "", "query": "", "product_category": "", "description": "", "bullets": (),
             "attributes": (), "options": {}, "price_text": "", "price": 1.0}  # fmt: skip
    return Product(**{"asin": "B1", "title": title, **empty, **fields})  # pyright: ignore[reportArgumentType]


def by_formula(documents: list[list[str]], query: list[str]) -> list[float]:
    """Lucene's BM25 in float64; a term's idf is ln(1 + (N - n + 1/2) / (n + 1/2))."""
    average = sum(map(len, documents)) / len(documents)
    scores: list[float] = []
    for terms in documents:
        counts, total = Counter(terms), 0.0
        for term in query:
            holding = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            norm = K1 * (1 - B + B * len(terms) / average)
            total += idf * counts[term] / (counts[term] + norm)
        scores.append(total)
    return scores


def test_ranking_is_lucenes_formula():
    rng = Random(0)
    texts = [rng.choices(WORDS, k=rng.randint(2, 12)) for _ in range(300)]
    search = BM25([product(" ".join(text)) for text in texts])
    stemmed = {"easy": "easi", "coffee": "coffe"}
    documents = [[stemmed.get(word, word) for word in text] for text in texts]
    for _ in range(20):
        query = rng.choices(WORDS, k=3)
        scores = by_formula(documents, [stemmed.get(word, word) for word in query])
        found = search(" ".join(query))
        assert len(found) == RESULTS
        assert min(scores[place] for place in found) >= sorted(scores)[-RESULTS] - 1e-6
        for a, b in pairwise(found):
            assert scores[a] >= scores[b] - 1e-6
            assert a < b or scores[a] > scores[b] + 1e-9  # ties in catalog order


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("lamps", (0,)),  # stems
        ("the", ()),  # stop words
        ("", ()),
        ("\u2019s", ()),
        ("women's", (1,)),  # possessives
        ("heavy duty", (2,)),  # hyphens part words
        ("3.5", (3,)),  # but a point within a number does not
        ("5", ()),
        ("CAF\u00c9", (4,)),
        ("\ud800", ()),
        ("nothing like it", ()),
    ],
)
def test_words_are_cut_as_lucene_does(query: str, found: tuple[int, ...]):
    titles = ["the lamp", "woman and women", "heavy-duty", "3.5 inch", "caf\u00e9"]
    assert BM25([product(title) for title in titles])(query) == found


def test_a_document_is_title_description_first_bullet_and_options():
    item = product("Lamp", description="Bright", bullets=("Soft", "unseen"),
                   options={"color": ("red", "blue"), "size": ("s",)})  # fmt: skip
    assert document(item) == "lamp bright soft color: red, blue, and size: s"


def test_a_shop_without_words_finds_nothing():
    assert BM25([product("")])("lamp") == ()
