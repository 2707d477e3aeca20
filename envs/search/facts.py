"""Questions about a country: the Factbook field of each answer, and how it is extracted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from envs.search.packages import Country

Read = Callable[[str], tuple[str, ...]]  # a part's text -> the accepted answers, none if it is ambiguous


@dataclass(frozen=True, slots=True)
class Relation:
    """A question about a country and the location of its answer."""

    name: str
    asks: str  # `{country}` stands for the country's name or a description of it
    field: str
    part: str
    read: Read


def answers(relation: Relation, country: Country) -> tuple[str, ...]:
    """The accepted answers; empty if the Factbook has none or an ambiguous one."""
    text = country.fields.get(relation.field, {}).get(relation.part, "")
    return tuple(dict.fromkeys(answer for answer in relation.read(text) if answer))


def _match(pattern: str, *others: Callable[[re.Match[str]], str]) -> Read:
    """A reader of texts that match `pattern`: the first group, and `others`, which are variants of it."""
    compiled = re.compile(pattern)

    def read(text: str) -> tuple[str, ...]:
        found = compiled.fullmatch(text)
        return (found[1], *(other(found) for other in others)) if found else ()

    return read


_MEASURE = r"([\d,.]+ {unit})(?: \([^()]*\))?(?: ?;.*)?"
_DATE = _match(
    r"(\d{1,2} [A-Z][a-z]+ \d{4})(?: \([^()]*\))?",
    lambda found: "{1} {0}, {2}".format(*found[1].split()),
)

RELATIONS = (
    Relation("capital", "What is the capital of {country}?", "Capital", "name",
             _match(r"([^(;,]+?)(?: \([^()]*\))?")),
    Relation("currency", "What is the currency of {country}?", "Exchange rates", "Currency",
             _match(r"([^(]+?) \(([A-Z]{3})\) per US dollar.*",
                    lambda found: found[1].removesuffix("s"), lambda found: found[2])),
    Relation("domain", "What is the internet country code of {country}?", "Internet country code", "",
             _match(r"(\.[a-z]{2})")),
    Relation("highest", "What is the highest point of {country}?", "Elevation", "highest point",
             _match(r"([^\d(;]+?)(?: \([^()]*\))? -?[\d,.]+ ?m?")),
    Relation("lowest", "What is the lowest point of {country}?", "Elevation", "lowest point",
             _match(r"((?!.*Ocean)(?!.*Sea)[^\d(;]+?)(?: \([^()]*\))? -?[\d,.]+ ?m?")),
    Relation("anthem", "What is the title of the national anthem of {country}?", "National anthem(s)",
             "title", _match(r'"([^"]+)"(?: \([^()]*\))?')),
    Relation("independence", "When did {country} become independent?", "Independence", "", _DATE),
    Relation("coastline", "How long is the coastline of {country}?", "Coastline", "",
             _match(_MEASURE.format(unit="km"), lambda found: found[1].removesuffix(" km"))),
    Relation("prefix", "What is the civil aircraft registration prefix of {country}?",
             "Civil aircraft registration country code prefix", "", _match(r"([A-Z0-9]{1,3})")),
    Relation("age", "What is the median age in {country}?", "Median age", "total",
             _match(_MEASURE.format(unit="years"), lambda found: found[1].removesuffix(" years"))),
    Relation("airports", "How many airports does {country} have?", "Airports", "",
             _match(r"([\d,]+)(?: \([^()]*\))?")),
    Relation("life", "What is the life expectancy at birth in {country}?", "Life expectancy at birth",
             "total population",
             _match(_MEASURE.format(unit="years"), lambda found: found[1].removesuffix(" years"))),
    Relation("area", "What is the total area of {country}?", "Area", "total",
             _match(_MEASURE.format(unit="sq km"), lambda found: found[1].removesuffix(" sq km"))),
)  # fmt: skip


def longest_border(country: Country) -> str:
    """The neighbor with the longest border; empty if there is no neighbor or a tie."""
    text = country.fields.get("Land boundaries", {}).get("border countries", "")
    lengths: dict[str, float] = {}
    for piece in text.split(";"):
        found = re.fullmatch(r"\s*([^\d(]+?) ([\d,.]+) km(?: \([^()]*\))?\s*", piece)
        if found is None:
            return ""
        lengths[found[1]] = float(found[2].replace(",", ""))
    longest = max(lengths.values(), default=0.0)
    names = [name for name, length in lengths.items() if length == longest]
    return names[0] if len(names) == 1 else ""
