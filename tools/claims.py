"""Numbers in README.md and docs/**/*.md against the records in docs that they come from.

Records are docs/benchmarks/NAME.json, as NAME, and docs/experiments/NAME/summary.json, as experiments.NAME.

docs/claims.yaml lists, page by page, what a page claims:

    - page: README.md
      recorded:                                  # sentences with the record's fields in place of the numbers
      - rises from {quickstart_seeds.summary.before:.1%} to {quickstart_seeds.summary.after:.1%} (mean
      proven:                                    # numbers that are in no record, and what proves them
      - {text: at most 3e-7 in any weight, by: tests/learner/test_layouts.py}

`{expression:format}` is Python's, of the records by file name: fields and items, which are taken from every
member of a list; + - * /; len, min, max, mean, sum and
deviation (n - 1). Two formats are ours: `words` (five) and `commits`
(short hashes, each once). `$` in a sentence stands for each name of its `for`, `...` for anything, in a
recorded sentence only within a line. `by` is a file of the repository in which one of the claim's numbers
stands, `source` (the page names the paper or data sheet), `setting` (a value that was chosen) or `note` (the
paragraph in which the claim begins says that no record is kept).
"""

from __future__ import annotations

import ast
import json
import operator
import re
import string
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"
)  # fmt: skip
KINDS = ("source", "setting", "note")
NO_RECORD = "no record is kept"
_START, _DIGITS, _EXPONENT = r"(?<![\w.,+/-])[-+]?", r"\d[\d,]*(?:\.\d+)?", r"e-?\d+"
_NUMBER = rf"{_START}{_DIGITS}(?:{_EXPONENT})?(?![\d.]*\.\d)"  # no version
_NAMES = "percent|points?|times|seconds?|minutes?|hours?|m?s|[KMG]iB|GB"
_UNIT = rf"\s?%|\s(?:{_NAMES})\b|(?:\s[a-z]+){{0,3}}\sper\ssecond"
_MEASURED = re.compile(
    rf"{_NUMBER}(?=(?:\s(?:to|and|or)\s[-\d.,]+)?(?:{_UNIT}))|{_START}{_DIGITS}{_EXPONENT}"
)
_ANY_NUMBER = re.compile(rf"{_NUMBER}%?(?!\w)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`|\]\([^)]*\)|<!--.*?-->", re.DOTALL | re.MULTILINE)
_PARAGRAPH = re.compile(r"\n\s*\n|\n(?=\s*[-*|] |\s*\d+\. )")
_FILE_NUMBER = re.compile(rf"(?<![\w.])\d[\d,_]*(?:\.\d+)?(?:{_EXPONENT})?%?")
_TABLE = re.compile(r"(?<=\n## Measured\n)(?:.|\n(?!#))*")
_VALUE = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?|[0-9a-f]{7}(?:, [0-9a-f]{7})*|\w+"
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_FUNCTIONS = {
    "len": len, "min": np.min, "max": np.max, "mean": np.mean, "sum": np.sum,
    "deviation": lambda values: np.std(values, ddof=1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a page, and what its record says."""

    start: int
    end: int
    claimed: str
    recorded: str
    source: str  # the expression


@dataclass(frozen=True)
class Page:
    """A page and its entry in docs/claims.yaml."""

    name: str
    text: str
    recorded: tuple[str, ...]
    proven: tuple[tuple[str, str], ...]  # text, by

    @cached_property
    def prose(self) -> str:
        """The text, blank where code, link targets and comments are."""
        return _CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), self.text)

    def paragraph(self, place: int) -> str:
        """The paragraph, item of a list or row of a table around an offset, with single blanks."""
        starts = [found.end() for found in _PARAGRAPH.finditer(self.text)]
        first = bisect(starts, place)
        start, end = [0, *starts][first], [*starts, len(self.text)][first]
        return " ".join(self.text[start:end].split())

    def line(self, place: int) -> int:
        """The number of the line at an offset."""
        breaks = [found.start() for found in re.finditer("\n", self.text)]
        return bisect(breaks, place - 1) + 1


def check(root: Path) -> list[str]:
    """Wrong and unproven numbers of the pages under `root`: a line each with file, line and both values."""
    records = read_records(root)
    return [problem for page in read_pages(root) for problem in _problems(page, records, root)]


def rewrite(root: Path) -> list[str]:
    """Write the records' values into the pages; returns what changed."""
    records, changes = read_records(root), list[str]()
    for page in read_pages(root):
        text, wrong = page.text, [n for n in numbers(page, records)[0] if n.claimed != n.recorded]
        for number in sorted(wrong, key=lambda n: -n.start):
            text = text[: number.start] + number.recorded + text[number.end :]
        changes += [f"{page.name}:{page.line(n.start)}: {n.claimed} -> {n.recorded}" for n in wrong]
        if wrong:
            (root / page.name).write_text(text, encoding="utf-8")
    return changes


def read_records(root: Path) -> dict[str, Any]:
    """Every record of docs/benchmarks by the name of its file, and as `experiments` those of experiments."""
    docs = root / "docs"
    records = {file.stem: json.loads(_read(file)) for file in (docs / "benchmarks").glob("*.json")}
    summaries = (docs / "experiments").glob("*/summary.json")
    return records | {"experiments": {file.parent.name: json.loads(_read(file)) for file in summaries}}


def read_pages(root: Path) -> list[Page]:
    """README.md and every page under docs/, with their claims."""
    entries: list[dict[str, Any]] = yaml.safe_load(_read(root / "docs" / "claims.yaml"))
    claims = {entry["page"]: entry for entry in entries}
    names = ["README.md", *(str(f.relative_to(root)) for f in sorted((root / "docs").rglob("*.md")))]
    pages: list[Page] = []
    for name in names:
        entry = claims.get(name, {})
        recorded = tuple(sentence for item in entry.get("recorded", ()) for sentence in _sentences(item))
        proven = tuple((item["text"], item["by"]) for item in entry.get("proven", ()))
        pages.append(Page(name, _read(root / name), recorded, proven))
    return pages


def numbers(page: Page, records: Mapping[str, Any]) -> tuple[list[Number], list[tuple[int, int]], list[str]]:
    """The recorded numbers of a page, the spans of its claims, and claims that the page or a record lacks."""
    found: list[Number] = []
    spans: list[tuple[int, int]] = []
    problems: list[str] = []
    for sentence in page.recorded:
        fields = [(name, spec or "") for _, name, spec, _ in string.Formatter().parse(sentence) if name]
        try:
            values = [render(evaluate(name, records), spec) for name, spec in fields]
        except ValueError as error:
            problems.append(f"docs/claims.yaml: {page.name}: {error}")
            continue
        matches = list(re.finditer(_pattern(sentence), page.text))
        if not matches:
            problems.append(f"docs/claims.yaml: {page.name} has no text {sentence!r}")
        for match in matches:
            spans.append(match.span())
            found += [
                Number(*match.span(i), match[i], value, name)
                for i, ((name, _), value) in enumerate(zip(fields, values, strict=True), start=1)
            ]
    return found, spans, problems


def evaluate(expression: str, records: Mapping[str, Any]) -> Any:
    """The value of an expression of the records; raises ValueError with the expression and what is wrong."""
    try:
        return _value(ast.parse(expression, mode="eval").body, records)
    except (ValueError, LookupError, TypeError, SyntaxError) as error:
        raise ValueError(f"{expression}: {error}") from None


def render(value: Any, spec: str) -> str:
    """`format(value, spec)`, with the formats `words` and `commits` besides."""
    if spec == "words":
        return WORDS[value]
    if spec == "commits":
        hashes = [value] if isinstance(value, str) else value
        return ", ".join(dict.fromkeys(text[:7] for text in hashes))
    return format(value, spec)


def _value(node: ast.expr, records: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() as constant):
            return constant
        case ast.Name(id=name):
            return _item(records, name)
        case ast.Attribute(value=inner, attr=name):
            return _item(_value(inner, records), name)
        case ast.Subscript(value=inner, slice=ast.Constant(value=key)):
            return _item(_value(inner, records), key)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            sides = (_value(side, records) for side in (left, right))
            return _OPERATORS[type(op)](*(np.array(s) if isinstance(s, list) else s for s in sides))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_value(argument, records))
        case _:
            raise ValueError(
                f"{ast.unparse(node)} is no field, item, + - * / or call of {', '.join(_FUNCTIONS)}"
            )


def _item(value: Any, key: Any) -> Any:
    """A key of a mapping, a member of a list by number, or a key of every member."""
    if isinstance(value, list) and isinstance(key, str):
        return [_item(member, key) for member in value]
    return value[key]


def _sentences(item: str | dict[str, Any]) -> Iterator[str]:
    """A sentence, or one for each name of its `for`."""
    if isinstance(item, str):
        yield item
    else:
        yield from (item["text"].replace("$", name) for name in item["for"])


def _pattern(sentence: str) -> str:
    """A regular expression of a sentence, with a group for each field."""
    parts: list[str] = []
    for literal, name, _, _ in string.Formatter().parse(sentence):
        parts.append(_literal(literal, r"[^\n]*?"))
        if name:
            parts.append(f"({_VALUE})")
    return "".join(parts)


def _literal(text: str, anything: str) -> str:
    """A regular expression of a text: any white space for its blanks, `anything` for each `...`."""
    escaped = r"\s+".join(re.escape(part) for part in re.split(r"\s+", text))
    return escaped.replace(re.escape("..."), anything)


def _problems(page: Page, records: Mapping[str, Any], root: Path) -> Iterator[str]:
    found, spans, problems = numbers(page, records)
    yield from problems
    for number in found:
        if number.claimed != number.recorded:
            where = f"{page.name}:{page.line(number.start)}"
            yield f"{where}: {number.claimed} is {number.recorded} in the record ({number.source})"
    for sentence in page.recorded:
        for literal, *_ in string.Formatter().parse(sentence):
            if written := _ANY_NUMBER.search(_CODE.sub(" ", literal)):
                yield f"docs/claims.yaml: {written[0]} is written out in a recorded claim of {page.name}"
    for text, by in page.proven:
        matches = list(re.finditer(_literal(text, r"[\s\S]*?"), page.text))
        spans += [match.span() for match in matches]
        if not matches:
            yield f"docs/claims.yaml: {page.name} has no text {text!r}"
        for match in matches:
            yield from (f"docs/claims.yaml: {text!r} {why}" for why in _doubts(page, match, by, root))
    yield from _unclaimed(page, spans)


def _doubts(page: Page, claim: re.Match[str], by: str, root: Path) -> Iterator[str]:
    """Why a claim is not proven `by` what it says."""
    where = f"{page.name}:{page.line(claim.start())}"
    if by == "note" and NO_RECORD not in page.paragraph(claim.start()):
        yield f"is a note, but the paragraph of {where} does not say that {NO_RECORD}"
    if by in KINDS:
        return
    file = root / by
    if not file.is_file():
        yield f"of {where} is proven by {by}, which does not exist"
        return
    written = _FILE_NUMBER.findall(file.read_bytes().decode("utf-8", "replace"))
    if not _telling(claim[0]) & {value for number in written for value in _values(number)}:
        yield f"of {where} is proven by {by}, in which none of its numbers stands"


def _telling(text: str) -> set[float]:
    """The numbers of a claim, as values; integers up to ten, which any file has, only if it has no others."""
    written = [match[0] for match in _ANY_NUMBER.finditer(text)]
    telling = [number for number in written if not re.fullmatch(r"\d|10", number)]
    return {value for number in telling or written for value in _values(number)}


def _values(number: str) -> Iterator[float]:
    """What a number says, and as a share if it is in percent."""
    value = float(number.rstrip("%").replace(",", "").replace("_", ""))
    yield value
    if number.endswith("%"):
        yield float(f"{value / 100:.12g}")


def _unclaimed(page: Page, spans: list[tuple[int, int]]) -> Iterator[str]:
    """Numbers with a unit, and all numbers of a table of measurements, that no claim covers."""
    places = {match.start() for match in _MEASURED.finditer(page.prose)}
    for section in _TABLE.finditer(page.prose):
        for row in re.finditer(r"^\|.*$", section[0], re.MULTILINE):
            start = section.start() + row.start()
            places |= {
                match.start() for match in _ANY_NUMBER.finditer(page.prose, start, start + len(row[0]))
            }
    for place in sorted(places):
        written = _ANY_NUMBER.match(page.prose, place)
        if written and not any(start <= place < end for start, end in spans):
            yield f"{page.name}:{page.line(place)}: {written[0]} is in no claim of docs/claims.yaml"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")
