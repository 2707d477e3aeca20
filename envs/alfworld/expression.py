"""The `{expression}` parts of a grammar, parsed.

A game file is untrusted data. The official engine passes these parts to Python's eval; this parser accepts
entity attributes, string literals, `+` and `or`, and refuses everything else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from envs.base import EnvError

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
    """`a + b or c`: the first alternative whose terms do not join to an empty text; the last if all do."""

    alternatives: tuple[tuple[Term, ...], ...]


def parse_expression(text: str) -> Expression:
    """Parses an expression; raises EnvError for any unknown form."""
    alternatives: list[list[Term]] = [[]]
    position = 0
    while True:
        term = _TERM.match(text, position)
        if term is None:
            raise _refused(text)
        single, double, variable, attribute = term.groups()
        if variable == "or" or (attribute is not None and attribute not in ATTRIBUTES):
            raise _refused(text)
        literal = double if single is None else single
        alternatives[-1].append(literal if variable is None else Attribute(variable, attribute or "name"))
        if term.end() == len(text):
            return Expression(tuple(map(tuple, alternatives)))
        operator = _OPERATOR.match(text, term.end())
        if operator is None:
            raise _refused(text)
        if operator[0] == "or":
            alternatives.append([])
        position = operator.end()


def _refused(text: str) -> EnvError:
    known = ", ".join(f"entity.{name}" for name in sorted(ATTRIBUTES))
    return EnvError(
        f"grammar: expression {text.strip()[:60]!r} refused; known: {known}, string literals, '+', 'or'"
    )
