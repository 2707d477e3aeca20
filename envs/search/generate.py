"""Fictional people, a passage about each, and questions of one and two hops.

Their names are new pairs of known words, so facts about someone in the held-out split can be looked up but
not memorized. No passage is used in both splits: a teacher belongs to the split of the pupil.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from envs.base import EnvError
from envs.search.questions import Hop, Question
from envs.search.retrieval import Passage
from envs.search.writing import write_folder

_FIRST = """
Ada Bela Carl Dora Emil Frida Gus Hilda Igor Jana Karl Lena Milan Nora Otto Paula Rolf Sara Tilda Ugo
Vera Willem Xenia Yuri Zora Anton Berta Cyril Edda Felix Greta Hugo Ines Jonas Klara Leon Mila Nils Olga
Pavel
"""
_LAST = """
Abel Brandt Castor Delmar Ekman Fenwick Galdor Hartwell Ilmar Jorvik Kestrel Lund Marek Novak Ostrow
Prager Quist Renard Soler Tamm Ulrich Varga Weiss Yarrow Zeman Albers Bosco Corvin Dahl Eder Falk Gruber
Holm Ibsen Jansen Keller Lorenz Moser Nagel Oberon
"""
_TOWNS = """
Arden Belmont Calder Dunmore Elgin Farrow Glencoe Harlow Iverton Jasper Kelso Linden Marlow Newbury
Oakham Preston Quarry Ripley Selby Thorne Upton Verwood Whitby Yarm Zennor Ashford Bexley Corby Dorset
Epsom
"""
_TRADES = """
baker tailor weaver potter miller cooper farmer sailor painter printer mason smith tanner glazier brewer
cobbler saddler fisher hunter shepherd gardener carpenter thatcher dyer joiner barber butcher surgeon
lawyer teller
"""
_TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Person:
    """A person and the facts in the passage about them."""

    name: str
    town: str
    trade: str
    teacher: str  # a name

    @property
    def passage(self) -> Passage:
        """The name as title, then the facts."""
        facts = f"born in {self.town}, a {self.trade}, taught by {self.teacher}"
        return Passage(self.name, f"{self.name}\n{facts}")


def generate(folder: Path, people: int = 1000, seed: int = 0) -> None:
    """Fills `folder` with a passage for each of `people` and questions for `train` and `test`."""
    pairs = [f"{first} {last}" for first in _FIRST.split() for last in _LAST.split()]
    if not 20 <= people <= len(pairs):
        raise EnvError(f"environment.tasks.generate.people: {people} is not in 20..{len(pairs)}; change it")
    rng = Random(seed)
    names = rng.sample(pairs, people)
    held_out = round(people * _TEST_SHARE)
    splits = {"train": _people(names[held_out:], rng), "test": _people(names[:held_out], rng)}
    questions: dict[str, list[Question]] = {}
    for split, members in splits.items():
        named, asked = {one.name: one for one in members}, list[Question]()
        for one in members:
            own, teacher = Hop(one.name, one.name), named[one.teacher]
            hops = (own, Hop(teacher.name, teacher.name))
            asked += _ask(one.name, one, "person", (own,))
            asked += _ask(f"the teacher of {one.name}", teacher, "teacher", hops)
        rng.shuffle(asked)
        questions[split] = asked
    write_folder(folder, (one.passage for members in splits.values() for one in members), questions)


def _people(names: list[str], rng: Random) -> list[Person]:
    teachers = [rng.choice([other for other in names if other != name]) for name in names]
    towns, trades = _TOWNS.split(), _TRADES.split()
    return [
        Person(name, rng.choice(towns), rng.choice(trades), teacher)
        for name, teacher in zip(names, teachers, strict=True)
    ]


def _ask(described: str, person: Person, kind: str, hops: tuple[Hop, ...]) -> Iterator[Question]:
    yield Question(f"Where was {described} born?", (person.town,), kind, hops)
    yield Question(f"What is the trade of {described}?", (person.trade,), kind, hops)
