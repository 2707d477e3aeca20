"""Exact match on hard cases, and how answers become actions, rule by rule."""

from __future__ import annotations

import time

import pytest

from envs.dialogue import Answer
from envs.search.dialogue import DIALOGUES, compact_read, project
from envs.search.scoring import exact_match, normalize
from envs.search.tags import blocks


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        ("Paris", ["Paris"], True),
        ("paris ", ["Paris"], True),
        ("The Beatles", ["Beatles"], True),
        ("an A the beatles", ["Beatles"], True),
        ("Theodore", ["odore"], False),  # an article is a word of its own
        ("A", ["B"], False),
        ("the", ["a"], True),  # nothing is left of either, as upstream
        ("U.S.A.", ["USA"], True),
        ("Mont-Blanc", ["Mont Blanc"], False),  # punctuation goes without a space, as upstream
        ("Mont-Blanc", ["MontBlanc"], True),
        ("Mont  Blanc\n", ["Mont Blanc"], True),
        ("4,853 km", ["4853 km"], True),
        ("4853", ["4,853 km", "4,853"], True),
        ("Paris, France", ["Paris"], False),
        ("It is Paris", ["Paris"], False),
        ("São Paulo", ["São Paulo"], True),
        ("SÃO PAULO", ["são paulo"], True),
        ("Sao Paulo", ["São Paulo"], False),  # accents count
        ("Sa\u0303o Paulo", ["S\u00e3o Paulo"], False),  # and so does how they are written, as upstream
        ("“Kassaman”", ["Kassaman"], False),  # ASCII punctuation only, as upstream
        ('"Kassaman"', ["Kassaman"], True),
        ("北京", ["北京"], True),
        ("euro", ["dollar", "Euro", "EUR"], True),
        ("", ["Paris"], False),
        ("Paris", [], False),
        ("<b>Paris</b>", ["bParisb"], True),
    ],
)
def test_exact_match_ignores_case_and_articles(answer: str, golden: list[str], expected: bool) -> None:
    assert exact_match(answer, golden) is expected


def test_normalization_drops_articles_punctuation_and_spaces() -> None:
    assert normalize("  The  Quick, (brown) FOX's an answer!\t") == "quick brown foxs answer"


THOUGHT = "<think>Paris is likely.</think>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{THOUGHT}<search> capital </search>", Answer("<search>capital</search>", True)),
        (f"{THOUGHT}<answer>Paris</answer>", Answer("<answer>Paris</answer>", True)),
        ("<answer>Paris</answer>", Answer("<answer>Paris</answer>", True)),
        ("<Search>a</Search>", Answer("<search>a</search>", True)),
        ("<search>a\nb</search> and so on", Answer("<search>a\nb</search>", True)),
        ("<search>a</search><search>b</search>", Answer("<search>a</search>", False)),
        ("<answer>a</answer><answer>b</answer>", Answer("<answer>a</answer>", False)),
        ("<search>a</search><answer>b</answer>", Answer("<search>a</search>", False)),
        ("<answer>b</answer><search>a</search>", Answer("<search>a</search>", False)),
        ("<answer>a</answer><answer>b", Answer("<answer>a</answer>", False)),
        ("<search>a", Answer("", False)),
        ("</search>a<search>", Answer("", False)),
        ("<answer>a</search>b</answer>", Answer("", False)),  # cut at the first </search>
        ("<information><answer>b</answer></information>", Answer("<answer>b</answer>", True)),
        ("<search></search>", Answer("<search></search>", True)),
        ("Paris", Answer("", False)),
        ("", Answer("", False)),
    ],
)
def test_the_first_search_or_answer_is_the_action(text: str, expected: Answer) -> None:
    assert project(text, ended=True) == expected


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        (" search capital of France", True, Answer("<search>capital of France</search>", True)),
        (" answer Paris\n", True, Answer("<answer>Paris</answer>", True)),
        (" answer Par", False, Answer("<answer>Par</answer>", False)),
        (" answer", True, Answer("", False)),
        ("answers Paris", True, Answer("", False)),
        ("", True, Answer("", False)),
    ],
)
def test_compact_answers_become_tagged_actions(text: str, ended: bool, expected: Answer) -> None:
    assert compact_read(text, ended) == expected


@pytest.mark.parametrize("name", ["chat", "compact"])
@pytest.mark.parametrize("action", ["<search>capital of France</search>", "<answer>4,853 km</answer>"])
def test_cloning_targets_are_parsed_as_their_action(name: str, action: str) -> None:
    assert DIALOGUES[name].read(DIALOGUES[name].answer(action), True) == Answer(action, valid=True)


def test_tags_are_found_in_linear_time() -> None:
    start = time.process_time()
    for bomb in ("<answer>" * 100_000, "</answer>" * 100_000, "<answer></search>" * 50_000):
        assert list(blocks(bomb, "answer")) == []
        assert project(bomb, ended=True).valid is False
    assert list(blocks("<answer>" * 100_000 + "</answer>", "answer")) == ["<answer>" * 99_999]
    assert time.process_time() - start < 2
