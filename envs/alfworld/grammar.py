"""The twl2 text of a game file as plain values: action templates, feedback and production rules."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any, TypeAlias

from envs.alfworld.expression import Expression, parse_expression
from envs.base import EnvironmentError


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A typed name in a condition: `o:object`; without a type the name is the type."""

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
    """`{body | given}`: the body once for every match of the condition, once where there is none to match."""

    body: Expression | Reference
    given: Condition | None
    listed: bool  # `[{...}]`: the bodies are joined as an English list


Symbol: TypeAlias = str | Reference | Each


@dataclass(frozen=True, slots=True)
class Rule:
    """One production: `right` where `condition` has a match, or always without one."""

    right: tuple[Symbol, ...]
    condition: Condition | None


@dataclass(frozen=True, slots=True)
class ActionText:
    """How an action is typed and what it answers."""

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
    """Parses a twl2 document; raises EnvironmentError for what it does not know."""
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
            raise EnvironmentError(f"grammar: expected 'action' or 'grammar', got {keyword!r}")
    return Grammar({name: tuple(map(_rule, _entries(name, entry))) for name, entry in rules.items()}, actions)


def parse_symbols(text: str) -> tuple[Symbol, ...]:
    """The symbols of one right-hand side, up to where nothing matches, as the official parser reads it."""
    symbols: list[Symbol] = []
    position = 0
    while True:
        symbol, end = _symbol(text, _skip(text, position), position)
        if symbol is None or (symbols and end == position):
            return tuple(symbols)
        symbols.append(symbol)
        position = end


def parse_condition(text: str) -> Condition:
    """`predicate(name:type, ...) & ...`"""
    return tuple(_predicate(part, text) for part in text.split("&"))


class _Tokens:
    """The tokens of a twl2 document, read one at a time."""

    def __init__(self, text: str) -> None:
        self._found: list[tuple[str, str]] = []
        position = 0
        while position < len(text):
            match = _DOCUMENT.match(text, position)
            if match is None:
                line = text.count("\n", 0, position) + 1
                raise EnvironmentError(
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
            raise EnvironmentError(f"grammar: expected {value or kind}, got {found[1][:20]!r}")
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
            raise EnvironmentError(f"grammar: action {name}: unknown field {key!r}")
        fields[key] = tokens.field("string" if key in ("template", "feedback") else "block")
    if "template" not in fields or "feedback" not in fields:
        raise EnvironmentError(f"grammar: action {name}: needs a template and a feedback")
    kept = [line for line in fields.get("grammar", "{}").split("\n") if not line.lstrip().startswith("#")]
    return ActionText(parse_symbols(fields["template"]), parse_symbols(fields["feedback"])), _json(
        "\n".join(kept)
    )


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EnvironmentError(f"grammar: a block is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise EnvironmentError("grammar: a block must be a JSON object of rules")
    return value


def _entries(name: str, entry: Any) -> list[dict[str, Any]]:
    valid = isinstance(entry, list) and all(
        isinstance(rule, dict) and isinstance(rule.get("rhs"), str) for rule in entry
    )
    if not valid:
        raise EnvironmentError(f"grammar: rule {name!r} must be a list of objects with an 'rhs' text")
    return entry


def _rule(entry: dict[str, Any]) -> Rule:
    condition = entry.get("condition")
    return Rule(parse_symbols(entry["rhs"]), parse_condition(condition) if condition else None)


def _skip(text: str, position: int) -> int:
    """Tabs, and at the start of a line any white space or `//` comment, do not count."""
    while (match := _SKIPPED.match(text, position)) and match.end() > position:
        position = match.end()
    return position


def _symbol(text: str, start: int, fallback: int) -> tuple[Symbol | None, int]:
    listed = text.startswith("[", start)
    if match := _EACH.match(text, start + listed):
        if not listed or text.startswith("]", match.end()):
            return _each(match, listed), match.end() + listed
    elif match := _REFERENCE.match(text, start):
        return Reference(match[1]), match.end()
    match = _LITERAL.match(text, start)
    if match is None or (match.end() == start and start < len(text)):
        return None, fallback
    return match[1] or match[2] or "", match.end()


def _each(match: re.Match[str], listed: bool) -> Each:
    body = Reference(match["symbol"]) if match["symbol"] else parse_expression(match["statement"])
    return Each(body, parse_condition(match["given"]) if match["given"] else None, listed)


def _predicate(text: str, whole: str) -> Predicate:
    match = _PREDICATE.fullmatch(text)
    if match is None:
        raise EnvironmentError(
            f"grammar: cannot read condition {whole.strip()!r}; expected predicate(name:type, ...) & ..."
        )
    parameters = []
    for part in match[2].split(",") if match[2].strip() else []:
        placeholder = _PLACEHOLDER.fullmatch(part)
        if placeholder is None:
            raise EnvironmentError(f"grammar: cannot read {part.strip()!r} in condition {whole.strip()!r}")
        parameters.append(Placeholder(placeholder[1], placeholder[2] or placeholder[1]))
    return Predicate(match[1], tuple(parameters))
