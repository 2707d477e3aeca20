"""A parser of a game file's twl2 grammar: action templates, feedback and production rules."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any, TypeAlias

from envs.alfworld.expression import Expression, parse_expression
from envs.base import EnvError


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A typed name in a condition: `o:object`; if no type is given, the name is the type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Predicate:
    """One conjunct of a condition: `inreceptacle(o:object, r:receptacle)`."""

    name: str
    parameters: tuple[Placeholder, ...]


Condition: TypeAlias = tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """`#symbol#`: expands to the first rule of that name whose condition holds."""

    symbol: str


@dataclass(frozen=True, slots=True)
class Each:
    """`{body | given}`: the body once for every match of the condition, or once if there is no condition."""

    body: Expression | Reference
    given: Condition | None
    listed: bool  # `[{...}]`: the bodies are joined as an English list


Symbol: TypeAlias = str | Reference | Each


@dataclass(frozen=True, slots=True)
class Rule:
    """One production: `right` applies if `condition` has a match, or always without a condition."""

    right: tuple[Symbol, ...]
    condition: Condition | None


@dataclass(frozen=True, slots=True)
class ActionText:
    """The command of an action and its feedback."""

    template: tuple[Symbol, ...]
    feedback: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A parsed twl2 document; action names are lower-cased."""

    rules: dict[str, tuple[Rule, ...]]
    actions: dict[str, ActionText]


_DOCUMENT = re.compile(
    r'\s+|\#[^\n]*|(?P<block>"""(?:.|\n)*?""")|(?P<string>"[^"]*")|(?P<name>[\w/-]+)|(?P<mark>::|[{};])'
)
_SKIPPED = re.compile(r"(?:(?m:^(?://.*|\s*)\n?)|[\t]+)")
_REFERENCE = re.compile(r"#\t*([\w()/!<>\-\s,.]+)\t*#")
_EACH = re.compile(
    r"\{\t*(?:#\t*(?P<symbol>[\w()/!<>\-\s,.]+)#|(?P<statement>[^|\[\]{}\n<>]+))"
    r"(?:\s*\|\s*(?P<given>[^;|{}\n\[\]#]+))?\t*\}"
)
_LITERAL = re.compile(r'"([^;|"<>\[\]#{}]*)"|([^;|"<>\[\]#{}]*)')
_PREDICATE = re.compile(r"\s*(!?[\w/]+)\s*\(([^()]*)\)\s*")
_PLACEHOLDER = re.compile(r"\s*([\w']+)\s*(?::\s*([\w/-]+)\s*)?")


def parse_grammar(text: str) -> Grammar:
    """Parses a twl2 document; raises EnvError for anything it does not support."""
    tokens = _Tokens(text)
    rules: dict[str, Any] = {}
    actions: dict[str, ActionText] = {}
    while not tokens.ended:
        keyword = tokens.take("name")
        if keyword == "grammar":
            rules.update(_json(tokens.field("block")))
        elif keyword == "action":
            name = tokens.take("name").lower()
            actions[name], own = _action(name, tokens)
            rules.update(own)
        else:
            raise EnvError(f"grammar: expected 'action' or 'grammar', got {keyword!r}")
    return Grammar({name: _rules(name, entries) for name, entries in rules.items()}, actions)


def parse_symbols(text: str) -> tuple[Symbol, ...]:
    """The symbols of one right-hand side up to the first unknown text, as in the official parser.

    Tabs, and at the start of a line any white space or `//` comment, are skipped.
    """
    symbols: list[Symbol] = []
    position = 0
    while True:
        start = position
        while (skipped := _SKIPPED.match(text, start)) and skipped.end() > start:
            start = skipped.end()
        symbol, end = _symbol(text, start, position)
        if symbol is None or (symbols and end == position):
            return tuple(symbols)
        symbols.append(symbol)
        position = end


def parse_condition(text: str) -> Condition:
    """Parses `predicate(name:type, ...) & ...`; raises EnvError for anything else."""
    predicates: list[Predicate] = []
    for conjunct in text.split("&"):
        match = _PREDICATE.fullmatch(conjunct)
        if match is None:
            raise EnvError(
                f"grammar: cannot read condition {text.strip()!r}; expected predicate(name:type, ...) & ..."
            )
        parameters: list[Placeholder] = []
        for part in match[2].split(",") if match[2].strip() else []:
            placeholder = _PLACEHOLDER.fullmatch(part)
            if placeholder is None:
                raise EnvError(f"grammar: cannot read {part.strip()!r} in condition {text.strip()!r}")
            parameters.append(Placeholder(placeholder[1], placeholder[2] or placeholder[1]))
        predicates.append(Predicate(match[1], tuple(parameters)))
    return tuple(predicates)


class _Tokens:
    """The tokens of a twl2 document, read one at a time."""

    def __init__(self, text: str) -> None:
        self._found: list[tuple[str, str]] = []
        position = 0
        while position < len(text):
            match = _DOCUMENT.match(text, position)
            if match is None:
                line = text.count("\n", 0, position) + 1
                raise EnvError(
                    f"grammar: line {line}: cannot read {text[position : position + 20]!r}"
                )
            if match.lastgroup:
                self._found.append((match.lastgroup, match[0]))
            position = match.end()
        self._next = 0

    @property
    def ended(self) -> bool:
        return self._next == len(self._found)

    def take(self, kind: str, value: str | None = None) -> str:
        found = ("", "the end") if self.ended else self._found[self._next]
        if found[0] != kind or (value is not None and found[1] != value):
            raise EnvError(f"grammar: expected {value or kind}, got {found[1][:20]!r}")
        self._next += 1
        return found[1]

    def accepts(self, kind: str, value: str) -> bool:
        if not self.ended and self._found[self._next] == (kind, value):
            self._next += 1
            return True
        return False

    def field(self, kind: str) -> str:
        """The content of `:: "..." ;` without its quotation marks."""
        self.take("mark", "::")
        quoted = self.take(kind)
        self.take("mark", ";")
        return quoted[1:-1] if kind == "string" else textwrap.dedent(quoted[3:-3])


def _action(name: str, tokens: _Tokens) -> tuple[ActionText, dict[str, Any]]:
    fields: dict[str, str] = {}
    tokens.take("mark", "{")
    while not tokens.accepts("mark", "}"):
        key = tokens.take("name")
        if key not in ("template", "feedback", "grammar", "pddl"):
            raise EnvError(f"grammar: action {name}: unknown field {key!r}")
        fields[key] = tokens.field("string" if key in ("template", "feedback") else "block")
    if "template" not in fields or "feedback" not in fields:
        raise EnvError(f"grammar: action {name}: needs a template and a feedback")
    kept = [line for line in fields.get("grammar", "{}").split("\n") if not line.lstrip().startswith("#")]
    return ActionText(parse_symbols(fields["template"]), parse_symbols(fields["feedback"])), _json(
        "\n".join(kept)
    )


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EnvError(f"grammar: a block is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise EnvError("grammar: a block must be a JSON object of rules")
    return value


def _rules(name: str, entries: Any) -> tuple[Rule, ...]:
    valid = isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("rhs"), str) for entry in entries
    )
    if not valid:
        raise EnvError(f"grammar: rule {name!r} must be a list of objects with an 'rhs' text")
    conditions = [entry.get("condition") for entry in entries]
    return tuple(
        Rule(parse_symbols(entry["rhs"]), parse_condition(condition) if condition else None)
        for entry, condition in zip(entries, conditions, strict=True)
    )


def _symbol(text: str, start: int, fallback: int) -> tuple[Symbol | None, int]:
    listed = text.startswith("[", start)
    if match := _EACH.match(text, start + listed):
        if not listed or text.startswith("]", match.end()):
            body = Reference(match["symbol"]) if match["symbol"] else parse_expression(match["statement"])
            given = parse_condition(match["given"]) if match["given"] else None
            return Each(body, given, listed), match.end() + listed
    elif match := _REFERENCE.match(text, start):
        return Reference(match[1]), match.end()
    match = _LITERAL.match(text, start)
    if match is None or (match.end() == start and start < len(text)):
        return None, fallback
    return match[1] or match[2] or "", match.end()
