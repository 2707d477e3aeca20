"""The fast comparison of texts is difflib's, block for block, autojunk and ties included."""

from __future__ import annotations

import time
from dataclasses import replace
from difflib import SequenceMatcher
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gigpo_mega.algorithms import similarity
from gigpo_mega.algorithms.advantage import estimate
from gigpo_mega.algorithms.anchors import similar_groups
from gigpo_mega.algorithms.similarity import Text, is_similar, least_matches
from gigpo_mega.config import AdvantageConfig
from tests.algorithms.tables import episode, table, take
from tools.bench.similarity import make_texts, plain_groups


def mixed(rng: Random, length: int) -> str:
    """Mostly frequent characters, so that from 200 characters on autojunk leaves only some."""
    rare = "xyz\u00e9\u4e2d\U0001f6d2\ud800\0"
    return "".join(rng.choice("ab c" if rng.random() < 0.9 else rare) for _ in range(length))


def edited(rng: Random, text: str) -> str:
    """The text with a few pieces removed, repeated, moved or replaced."""
    for _ in range(rng.randrange(4)):
        a, b, c = sorted(rng.randrange(len(text) + 1) for _ in range(3))
        head, one, two, tail = text[:a], text[a:b], text[b:c], text[c:]
        text = head + rng.choice((two + one, one, two + two, mixed(rng, rng.randrange(9)) + one + two)) + tail
    return text


SIZES = st.one_of(st.integers(0, 30), st.integers(190, 210), st.integers(211, 600))
PAIRS = st.builds(lambda seed, size: (Random(seed), mixed(Random(seed), size)), st.integers(0, 2**32), SIZES)


def similar(one: str, other: str, threshold: float) -> bool:
    required = least_matches(len(one) + len(other), threshold)
    return is_similar(Text.of(one), Text.of(other), required, threshold)


@settings(max_examples=300)
@given(PAIRS, st.floats(0.05, 1.0))
def test_texts_are_similar_if_difflib_s_ratio_says_so(pair: tuple[Random, str], threshold: float) -> None:
    rng, reference = pair
    for text in (edited(rng, reference), mixed(rng, len(reference)), reference):
        ratio = SequenceMatcher(None, text, reference).ratio()
        assert similar(text, reference, threshold) == (ratio >= threshold)
        if ratio > 0:
            assert similar(text, reference, ratio)  # a tie is similar
        if 0 < ratio < 1:
            assert not similar(text, reference, float(np.nextafter(ratio, 2)))


@settings(max_examples=300)
@given(PAIRS)
def test_the_longest_block_is_difflib_s_in_every_part(pair: tuple[Random, str]) -> None:
    rng, reference = pair
    text = edited(rng, reference)
    runs = similarity._Runs.of(Text.of(text), Text.of(reference))
    assert runs is not None
    matcher = SequenceMatcher(None, text, reference)
    for _ in range(8):
        begin, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        other, other_end = sorted(rng.randrange(len(reference) + 1) for _ in range(2))
        bounds = (begin, end, other, other_end)
        assert runs.longest_block(bounds) == tuple(matcher.find_longest_match(*bounds))


@given(st.integers(1, 5000), st.floats(0.001, 1.0))
def test_least_matches_is_where_the_ratio_reaches_the_threshold(length: int, threshold: float) -> None:
    least = least_matches(length, threshold)
    assert 2.0 * least / length >= threshold
    assert 2.0 * (least - 1) / length < threshold


def test_texts_with_very_many_equal_characters_are_left_to_difflib(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, asked = ["aaaabbbb", "aaaabbbc", "ccccdddd", ""], list[str]()

    class Matcher(SequenceMatcher[str]):
        def ratio(self) -> float:
            asked.append(self.a)  # type: ignore[attr-defined]
            return super().ratio()

    monkeypatch.setattr(similarity, "SequenceMatcher", Matcher)
    for limit, expected in ((10_000, []), (10, ["aaaabbbc"])):  # the other texts share too few characters
        monkeypatch.setattr(similarity, "_MANY", limit)
        assert similar_groups(texts, np.zeros(4, dtype=np.int64), 0.8).tolist() == [0, 0, 1, 2]
        assert asked == expected


def test_empty_texts_are_similar_to_each_other_only() -> None:
    assert similar_groups(["", "a", ""], np.zeros(3, dtype=np.int64), 1.0).tolist() == [0, 1, 0]
    assert similar("", "", 1.0)


def test_search_results_are_grouped_as_by_difflib_in_a_fifth_of_its_time() -> None:
    """An iteration at search settings took 108 CPU seconds on every rank."""
    texts, group = make_texts(tasks=2)
    start = time.process_time()
    found = similar_groups(texts, group, 0.9)
    fast = time.process_time() - start
    start = time.process_time()
    assert found.tolist() == plain_groups(texts, group)
    assert fast < (time.process_time() - start) / 5


def test_no_rows_need_no_texts() -> None:
    """An iteration whose groups were all replaced has none; rows without texts are refused."""
    rows, cfg = table([episode(0, 0.0, 1.0)]), AdvantageConfig(similarity=0.9)
    none = take(rows, np.zeros(0, dtype=np.int64))
    assert len(estimate(none, cfg).total) == 0
    silent = replace(rows, steps=tuple(replace(step, observation="") for step in rows.steps))
    with pytest.raises(ValueError, match="no step has one"):
        estimate(silent, cfg)
