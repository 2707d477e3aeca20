from __future__ import annotations

from difflib import SequenceMatcher
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigpo_mega.algorithms.anchors import anchor_key, similar_groups

Texts = list[tuple[int, str]]
TEXTS = st.lists(st.tuples(st.integers(0, 1), st.text("ab ", max_size=6)), max_size=25)


def test_anchor_key_is_keyed_blake2b_of_the_exact_text() -> None:
    salt = blake2b(b"task7", digest_size=32).digest()
    assert anchor_key("a b", "task7") == blake2b(b"a b", digest_size=16, key=salt).digest()
    assert len(anchor_key("", "")) == 16


def test_anchor_keys_differ_by_any_change_of_text_or_salt() -> None:
    # Composed and decomposed é are different texts; so is a lone surrogate, which UTF-8 can't encode.
    texts = ["a b", "a  b", "A b", "a b ", "", "\0", "\u00e9", "e\u0301", "\ud800", "?"]
    keys = {anchor_key(text, salt) for text in texts for salt in ("t1", "t2", "")}
    assert len(keys) == 30


@given(TEXTS, st.floats(0.05, 1.0))
def test_similar_groups_agree_with_the_plain_greedy_loop(rows: Texts, threshold: float) -> None:
    founders: Texts = []
    expected: list[int] = []
    for task, text in rows:
        for cluster, (owner, first) in enumerate(founders):
            if owner == task and SequenceMatcher(None, text, first).ratio() >= threshold:
                expected.append(cluster)
                break
        else:
            expected.append(len(founders))
            founders.append((task, text))
    groups = np.array([task for task, _ in rows], dtype=np.int64)
    assert similar_groups([text for _, text in rows], groups, threshold).tolist() == expected


def test_similar_groups_compare_with_the_first_member_only() -> None:
    # Each text resembles the one before it; only the first member counts, so the chain breaks.
    texts = ["aaaaaaaaaa", "aaaaaaaabb", "aaaaaabbbb"]
    assert SequenceMatcher(None, texts[2], texts[1]).ratio() == pytest.approx(0.8)
    assert similar_groups(texts, np.zeros(3, dtype=np.int64), 0.8).tolist() == [0, 0, 1]


def test_similarity_keeps_autojunk() -> None:
    # From 200 characters on, difflib ignores characters that make up more than 1% of the first member: texts
    # that differ only in their first letter then have nothing in common. 199 characters are compared in full.
    long, short = "ab" * 100, "ab" * 99
    one = np.zeros(2, dtype=np.int64)
    assert SequenceMatcher(None, "x" + long, "y" + long, autojunk=False).ratio() > 0.99
    assert similar_groups(["y" + long, "x" + long], one, 0.9).tolist() == [0, 1]
    assert similar_groups(["y" + short, "x" + short], one, 0.9).tolist() == [0, 0]
