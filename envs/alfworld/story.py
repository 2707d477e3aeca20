"""The grammar compiled against a rule set's access paths: text from a state, without re-reading the grammar.

A rule is compiled once for each set of placeholders it can be reached with (the parameters of the action,
plus what enclosing conditions bind), so a context at run time is one row of object numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from envs.alfworld.expression import Attribute, Expression
from envs.alfworld.grammar import Condition, Each, Grammar, Placeholder, Reference, Symbol
from envs.alfworld.relations import (
    Distinct,
    Match,
    Query,
    Relations,
    Row,
    Schema,
    Stage,
    Test,
    getter,
    tuple_getter,
)
from envs.base import EnvironmentError

Signature: TypeAlias = tuple[Placeholder, ...]

_ARTICLES = {"definite": "the", "indefinite": "a"}


@dataclass(frozen=True, slots=True)
class Scene:
    """What text is made from: the state, and each object's attributes by its number."""

    state: Relations
    attributes: dict[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Text:
    """Fixed words."""

    text: str

    def write(self, row: Row, scene: Scene) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Value:
    """An attribute of the object in column `column` of the row."""

    column: int
    attribute: str

    def write(self, row: Row, scene: Scene) -> str:
        return scene.attributes[self.attribute][row[self.column]]


@dataclass(frozen=True, slots=True)
class Joined:
    """Parts one after the other."""

    parts: tuple[Node, ...]

    def write(self, row: Row, scene: Scene) -> str:
        return "".join([part.write(row, scene) for part in self.parts])


@dataclass(frozen=True, slots=True)
class FirstNonEmpty:
    """The first part that writes something; the last one otherwise."""

    parts: tuple[Node, ...]

    def write(self, row: Row, scene: Scene) -> str:
        text = ""
        for part in self.parts:
            text = part.write(row, scene)
            if text:
                break
        return text


@dataclass(frozen=True, slots=True)
class Choice:
    """The first alternative whose condition has a match."""

    symbol: str
    alternatives: tuple[tuple[Query | None, Node], ...]

    def write(self, row: Row, scene: Scene) -> str:
        for query, body in self.alternatives:
            if query is None or query.rows(row, scene.state):
                return body.write(row, scene)
        raise EnvironmentError(f"grammar: no rule of {self.symbol!r} applies; add one without a condition")


@dataclass(frozen=True, slots=True)
class Repeat:
    """The body for every match; with `glue` (empty, separator, last separator) joined as an English list."""

    query: Query
    body: Node
    glue: tuple[Node, Node, Node] | None

    def write(self, row: Row, scene: Scene) -> str:
        texts = [self.body.write(match, scene) for match in self.query.rows(row, scene.state)]
        if self.glue is None or len(texts) == 1:
            return "".join(texts)
        empty, separator, last = self.glue
        if not texts:
            return empty.write(row, scene)
        return separator.write(row, scene).join(texts[:-1]) + last.write(row, scene) + texts[-1]


Node: TypeAlias = Text | Value | Joined | FirstNonEmpty | Choice | Repeat


@dataclass(slots=True)
class Compiler:
    """Turns grammar symbols into nodes, registering the access paths they need in `schema`."""

    grammar: Grammar
    schema: Schema
    types: frozenset[str]
    unsafe: frozenset[str]  # predicates whose story the official engine tells differently from what happened
    predicates: set[str] = field(default_factory=set)  # what text compiled since the last `clear` depends on:
    columns: set[int] = field(default_factory=set)  # relations, and columns of the row
    _done: dict[tuple[str, Signature], Node] = field(default_factory=dict)
    _open: list[tuple[str, Signature]] = field(default_factory=list)

    def clear(self) -> None:
        """Forgets what text compiled so far depends on, and with it the compiled text."""
        self.predicates.clear()
        self.columns.clear()
        self._done.clear()

    def symbols(self, symbols: Sequence[Symbol], signature: Signature) -> Node:
        """One node for a right-hand side reached with the placeholders `signature`."""
        parts = tuple(self._symbol(symbol, signature) for symbol in symbols)
        return parts[0] if len(parts) == 1 else Joined(parts)

    def _symbol(self, symbol: Symbol, signature: Signature) -> Node:
        if isinstance(symbol, str):
            return Text(symbol)
        if isinstance(symbol, Reference):
            return self._reference(symbol.symbol, signature)
        return self._each(symbol, signature)

    def _reference(self, name: str, signature: Signature) -> Node:
        key = (name, signature)
        if key in self._open:
            raise EnvironmentError(f"grammar: rule {name!r} refers to itself")
        if key not in self._done:
            rules = self.grammar.rules.get(name)
            if not rules:
                raise EnvironmentError(f"grammar: no rule is called {name!r}")
            self._open.append(key)
            alternatives = tuple(
                (
                    None if rule.condition is None else self._query(rule.condition, signature)[0],
                    self.symbols(rule.right, signature),
                )
                for rule in rules
            )
            self._open.pop()
            self._done[key] = alternatives[0][1] if alternatives[0][0] is None else Choice(name, alternatives)
        return self._done[key]

    def _each(self, each: Each, signature: Signature) -> Node:
        if each.given is None:
            return self._body(each.body, signature)
        query, inner = self._query(each.given, signature)
        glue = None
        if each.listed:
            empty, separator, last = (
                self._reference(name, signature)
                for name in ("list_empty", "list_separator", "list_last_separator")
            )
            glue = (empty, separator, last)
        return Repeat(query, self._body(each.body, inner), glue)

    def _body(self, body: Expression | Reference, signature: Signature) -> Node:
        if isinstance(body, Reference):
            return self._reference(body.symbol, signature)
        options = tuple(self._terms(terms, signature) for terms in body.alternatives)
        return options[0] if len(options) == 1 else FirstNonEmpty(options)

    def _terms(self, terms: Sequence[str | Attribute], signature: Signature) -> Node:
        parts: list[Node] = []
        for term in terms:
            part = Text(term) if isinstance(term, str) else self._value(term, signature)
            last = parts[-1] if parts else None
            if isinstance(part, Text) and isinstance(last, Text):
                parts[-1] = Text(last.text + part.text)
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 else Joined(tuple(parts))

    def _value(self, term: Attribute, signature: Signature) -> Text | Value:
        # a name may stand for placeholders of two types: the one bound last counts
        columns = [i for i, placeholder in enumerate(signature) if placeholder.name == term.variable]
        if not columns:
            known = ", ".join(placeholder.name for placeholder in signature) or "none"
            raise EnvironmentError(f"grammar: {term.variable!r} is not bound here; bound: {known}")
        self.columns.add(columns[-1])
        fixed = _ARTICLES.get(term.attribute)
        return Value(columns[-1], term.attribute) if fixed is None else Text(fixed)

    def _query(self, condition: Condition, signature: Signature) -> tuple[Query, Signature]:
        """A condition as a join in the order it is written; also the placeholders its rows hold.

        As in the official engine new placeholders take values that no other placeholder has.
        """
        bound = list(signature)
        stages: list[Stage] = []
        for predicate in condition:
            self._check(predicate.name, predicate.parameters)
            self.predicates.add(predicate.name)
            old = len(bound)
            known = [i for i, p in enumerate(predicate.parameters) if p in bound]
            new = [i for i, p in enumerate(predicate.parameters) if p not in bound]
            columns = [bound.index(predicate.parameters[i]) for i in known]
            self.columns.update(columns if not new else range(old))  # new values differ from all others
            bound.extend(predicate.parameters[i] for i in new)
            slot = self.schema.slot(predicate.name, tuple(known))
            if not new:
                stages.append(Test(slot, getter(columns), True))
                continue
            stages.append(Match(slot, getter(columns), tuple_getter(new)))
            stages.append(Distinct(old))
            stages.extend(
                Test(self.schema.slot(type_predicate(bound[i].type), (0,)), getter([i]), True)
                for i in range(old, len(bound))
            )
        return Query(tuple(stages)), tuple(bound)

    def _check(self, predicate: str, parameters: Sequence[Placeholder]) -> None:
        unknown = next((p for p in parameters if p.type not in self.types), None)
        if unknown is not None:
            raise EnvironmentError(
                f"grammar: type {unknown.type!r} in a condition on {predicate!r} is not in the domain"
            )
        if predicate.removeprefix("not_") in self.unsafe:
            raise EnvironmentError(
                f"grammar: conditions on {predicate!r}, which has conditional effects, are not supported"
            )
        if len(set(parameters)) != len(parameters):
            raise EnvironmentError(f"grammar: a condition on {predicate!r} names a placeholder twice")


def type_predicate(kind: str) -> str:
    """The unary relation that holds the objects of a type and its subtypes."""
    return f"type:{kind}"
