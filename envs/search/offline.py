"""A corpus of real text with questions, made from data packages: `python -m envs.search.offline FOLDER`.

One-hop questions ask for a country's facts or a person's years; two-hop questions identify the country by
its capital, by the neighbor with which it has the longest border, or by a place in it. Gold answers are
unique, and the corpus contains the passage of every hop. Countries and people, not questions, are divided
between the splits, by the country or person of the last hop: no fact of either hop is in both.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from envs.program import run
from envs.search.facts import RELATIONS, Relation, answers, longest_border
from envs.search.packages import Article, Country, articles, attribution, countries, passages
from envs.search.questions import Hop, Question
from envs.search.retrieval import Passage
from envs.search.scoring import normalize
from envs.search.writing import write_folder

SPLITS = ("train", "test")
TEST_SHARE = 0.2
_YEARS = re.compile(r"\((?:born )?(\d{3,4})[\u2013-](\d{3,4})\)$")
_LOCATION = re.compile(r"(?:, |.* (?:in|of) )([^,]+)$")
_PLACE = re.compile(r"\b(?:city|capital|town|metropolis|province|region|port|municipality)\b", re.IGNORECASE)


def build(folder: Path) -> None:
    """Writes corpus.jsonl, a file of questions for each split and ATTRIBUTION.txt."""
    lands, entries = countries(), articles()
    corpus = [*(p for land in lands for p in passages(land)), *(entry.passage for entry in entries)]
    questions = make_questions(lands, entries, corpus)
    write_folder(folder, corpus, questions, {"ATTRIBUTION.txt": attribution()})


def make_questions(
    lands: Sequence[Country], entries: Sequence[Article], corpus: Iterable[Passage]
) -> dict[str, list[Question]]:
    """The questions of each split, those whose hops are all in the corpus, in a fixed shuffled order."""
    texts_of: dict[str, str] = {}
    for passage in corpus:
        texts_of[passage.title] = normalize(passage.contents) + "\n" + texts_of.get(passage.title, "")
    made: dict[str, list[Question]] = {split: [] for split in SPLITS}
    texts: set[str] = set()
    for entity, question, needed in [*_about_countries(lands, entries), *_about_people(entries)]:
        hops = zip(question.hops, needed, strict=True)
        present = all(normalize(fact) in texts_of.get(hop.title, "") for hop, fact in hops)
        if present and question.text not in texts:
            made[split_of(entity)].append(question)
            texts.add(question.text)
    return {split: sorted(asked, key=lambda one: _digest(one.text)) for split, asked in made.items()}


def split_of(entity: str) -> str:
    """The split that all facts about an entity belong to."""
    return "test" if _digest(entity) < TEST_SHARE else "train"


def _digest(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


Made = Iterator[tuple[str, Question, tuple[str, ...]]]  # entity, question, the fact in each hop's passage


def _about_countries(lands: Sequence[Country], entries: Sequence[Article]) -> Made:
    named = {land.name: land for land in lands}
    for land in lands:
        for relation in RELATIONS:
            yield from _ask(relation, land, land.name, "country", ())
    for kind, description, land, hop, bridge in _descriptions(lands, entries, named):
        for relation in RELATIONS:
            if not (kind == "capital" and relation.name == "capital"):
                yield from _ask(relation, land, description, kind, ((hop, bridge),))


def _ask(
    relation: Relation, land: Country, described: str, kind: str, before: Sequence[tuple[Hop, str]]
) -> Made:
    golden = answers(relation, land)
    if not golden or normalize(golden[0]) in normalize(described):
        return
    last = Hop(f"{land.name} {relation.field}", f"{land.name}: {relation.field}")
    hops = (*(hop for hop, _ in before), last)
    question = Question(relation.asks.format(country=described), golden, kind, hops)
    yield land.name, question, (*(bridge for _, bridge in before), golden[0])


def _descriptions(
    lands: Sequence[Country], entries: Sequence[Article], named: Mapping[str, Country]
) -> Iterator[tuple[str, str, Country, Hop, str]]:
    """Indirect references to countries: kind, text, country, first hop, the fact in that hop's passage."""
    capitals: dict[str, list[Country]] = {}
    for land in lands:
        for capital in answers(RELATIONS[0], land)[:1]:
            capitals.setdefault(capital, []).append(land)
    for capital, owners in capitals.items():
        if len(owners) == 1 and owners[0].name not in capital:
            hop = Hop(f"capital {capital}", f"{owners[0].name}: Capital")
            yield "capital", f"the country whose capital is {capital}", owners[0], hop, capital
    for land in lands:
        neighbor = longest_border(land)
        if neighbor in named:
            hop = Hop(f"{land.name} Land boundaries", f"{land.name}: Land boundaries")
            text = f"the country that has the longest border with {land.name}"
            yield "border", text, named[neighbor], hop, neighbor
    for entry in entries:
        found = _LOCATION.search(entry.description) if _PLACE.search(entry.description) else None
        land = named.get(found[1]) if found and entry.topic == "Geography" else None
        if land is not None and land.name not in entry.title:
            hop = Hop(entry.title, entry.title)
            yield "place", f"the country in which {entry.title} lies", land, hop, land.name


def _about_people(entries: Sequence[Article]) -> Made:
    for entry in entries:
        years = _YEARS.search(entry.description) if entry.topic == "People" else None
        if years is not None:
            for asked, year in (("was {} born", years[1]), ("did {} die", years[2])):
                text = f"In which year {asked.format(entry.title)}?"
                hop = Hop(entry.title, entry.title)
                yield entry.title, Question(text, (year,), "person", (hop,)), (year,)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: the folder to make."""
    parser = argparse.ArgumentParser(prog="python -m envs.search.offline", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to fill, for environment.tasks.data")
    build(parser.parse_args(arguments).folder)


if __name__ == "__main__":
    run(main)
