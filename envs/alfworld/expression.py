"""The `{expression}` parts of a grammar, parsed.

A game file is data from elsewhere. The official engine hands these parts to Python's eval; here they are read
by a parser that knows entity attributes, string literals, `+` and `or`, and refuses everything else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from envs.base import EnvironmentError

ATTRIBUTES = frozenset({"name", "id", "type", "definite", "indefinite"})

_TERM = re.compile(r"\s*(?:'([^'\\]*)'|\"([^\"\\]*)\"|([A-Za-z_]\w*)(?:\.([A-Za-z_]\w*))?)\s*")
_OPERATOR = re.compile(r"\+|or\b")


@dataclass(frozen=True, slots=True)
class Attribute:
    """`o.name`; a bare `o` means its name."""

    variable: str
    attribute: str


Term: TypeAlias = str | Attribute


@dataclass(frozen=True, slots=True)
class Expression:
    """`a + b or c`: the first alternative whose terms do not join to nothing; the last one if all do."""

    alternatives: tuple[tuple[Term, ...], ...]


def parse_expression(text: str) -> Expression:
    """Parses an expression; raises EnvironmentError for any form it does not know."""
    alternatives: list[list[Term]] = [[]]
    position = 0
    while True:
        term = _TERM.match(text, position)
        if term is None:
            raise _refused(text)
        alternatives[-1].append(_term(term, text))
        if term.end() == len(text):
            return Expression(tuple(map(tuple, alternatives)))
        operator = _OPERATOR.match(text, term.end())
        if operator is None:
            raise _refused(text)
        if operator[0] == "or":
            alternatives.append([])
        position = operator.end()


def _term(match: re.Match[str], text: str) -> Term:
    single, double, variable, attribute = match.groups()
    if variable is None:
        return single if single is not None else double
    if variable == "or" or (attribute is not None and attribute not in ATTRIBUTES):
        raise _refused(text)
    return Attribute(variable, attribute or "name")


def _refused(text: str) -> EnvironmentError:
    known = ", ".join(f"entity.{name}" for name in sorted(ATTRIBUTES))
    return EnvironmentError(
        f"grammar: expression {text.strip()[:60]!r} refused; known: {known}, string literals, '+', 'or'"
    )
