"""A compiler from grammar rules to nodes that render text from a state.

A rule is compiled once for each tuple of placeholders that are bound when it is reached (the parameters of
the action and those of enclosing conditions), so that at run time their values are one row of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from envs.alfworld.expression import Attribute, Expression
from envs.alfworld.grammar import Condition, Each, Grammar, Placeholder, Reference, Symbol
from envs.alfworld.relations import (
    AllDifferent,
    Filter,
    Join,
    Query,
    Relations,
    Row,
    Schema,
    Stage,
    getter,
    tuple_getter,
)
from envs.base import EnvError

Signature: TypeAlias = tuple[Placeholder, ...]

_ARTICLES = {"definite": "the", "indefinite": "a"}


@dataclass(frozen=True, slots=True)
class RenderContext:
    """What nodes render: the state, and each object's attributes by its number."""

    state: Relations
    attributes: dict[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Text:
    """Fixed text."""

    text: str

    def render(self, row: Row, context: RenderContext) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Value:
    """An attribute of the object in column `column` of the row."""

    column: int
    attribute: str

    def render(self, row: Row, context: RenderContext) -> str:
        return context.attributes[self.attribute][row[self.column]]


@dataclass(frozen=True, slots=True)
class Joined:
    """Concatenated parts."""

    parts: tuple[Node, ...]

    def render(self, row: Row, context: RenderContext) -> str:
        return "".join([part.render(row, context) for part in self.parts])


@dataclass(frozen=True, slots=True)
class FirstNonEmpty:
    """The first part whose text is not empty."""

    parts: tuple[Node, ...]

    def render(self, row: Row, context: RenderContext) -> str:
        text = ""
        for part in self.parts:
            text = part.render(row, context)
            if text:
                break
        return text


@dataclass(frozen=True, slots=True)
class Choice:
    """The first alternative whose condition has a match."""

    symbol: str
    alternatives: tuple[tuple[Query | None, Node], ...]

    def render(self, row: Row, context: RenderContext) -> str:
        for query, body in self.alternatives:
            if query is None or query.rows(row, context.state):
                return body.render(row, context)
        raise EnvError(f"grammar: no rule of {self.symbol!r} applies; add one without a condition")


@dataclass(frozen=True, slots=True)
class Repeat:
    """The body for every match; with `separators` (empty, separator, last one) joined as an English list."""

    query: Query
    body: Node
    separators: tuple[Node, Node, Node] | None

    def render(self, row: Row, context: RenderContext) -> str:
        texts = [self.body.render(match, context) for match in self.query.rows(row, context.state)]
        if self.separators is None or len(texts) == 1:
            return "".join(texts)
        empty, separator, last = self.separators
        if not texts:
            return empty.render(row, context)
        return separator.render(row, context).join(texts[:-1]) + last.render(row, context) + texts[-1]


Node: TypeAlias = Text | Value | Joined | FirstNonEmpty | Choice | Repeat


@dataclass(slots=True)
class TextCompiler:
    """Turns grammar symbols into nodes and registers the access paths they need in `schema`."""

    grammar: Grammar
    schema: Schema
    types: frozenset[str]
    unsafe: frozenset[str]  # predicates that the official engine does not render from their true values
    # what the text compiled since the last `clear` depends on: relations, and columns of the row
    predicates: set[str] = field(default_factory=set)
    columns: set[int] = field(default_factory=set)
    _done: dict[tuple[str, Signature], Node] = field(default_factory=dict)
    _open: list[tuple[str, Signature]] = field(default_factory=list)

    def clear(self) -> None:
        """Clears the recorded dependencies and, with them, the cached nodes."""
        self.predicates.clear()
        self.columns.clear()
        self._done.clear()

    def symbols(self, symbols: Sequence[Symbol], signature: Signature) -> Node:
        """One node for a right-hand side that is reached with the placeholders `signature` bound."""
        parts: list[Node] = []
        for symbol in symbols:
            match symbol:
                case str():
                    parts.append(Text(symbol))
                case Reference():
                    parts.append(self._reference(symbol.symbol, signature))
                case Each():
                    parts.append(self._each(symbol, signature))
        return parts[0] if len(parts) == 1 else Joined(tuple(parts))

    def _reference(self, name: str, signature: Signature) -> Node:
        key = (name, signature)
        if key in self._open:
            raise EnvError(f"grammar: rule {name!r} refers to itself")
        if key not in self._done:
            rules = self.grammar.rules.get(name)
            if not rules:
                raise EnvError(f"grammar: no rule is called {name!r}")
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
        separators = None
        if each.listed:
            empty, separator, last = (
                self._reference(name, signature)
                for name in ("list_empty", "list_separator", "list_last_separator")
            )
            separators = (empty, separator, last)
        return Repeat(query, self._body(each.body, inner), separators)

    def _body(self, body: Expression | Reference, signature: Signature) -> Node:
        if isinstance(body, Reference):
            return self._reference(body.symbol, signature)
        options = tuple(self._terms(terms, signature) for terms in body.alternatives)
        return options[0] if len(options) == 1 else FirstNonEmpty(options)

    def _terms(self, terms: Sequence[str | Attribute], signature: Signature) -> Node:
        parts: list[Node] = []
        for term in terms:
            if isinstance(term, str):
                part = Text(term)
            elif term.attribute in _ARTICLES:
                self._column(term.variable, signature)
                part = Text(_ARTICLES[term.attribute])
            else:
                part = Value(self._column(term.variable, signature), term.attribute)
            last = parts[-1] if parts else None
            if isinstance(part, Text) and isinstance(last, Text):
                parts[-1] = Text(last.text + part.text)
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 else Joined(tuple(parts))

    def _column(self, variable: str, signature: Signature) -> int:
        """The column of a variable; of placeholders that share its name, the one bound last counts."""
        columns = [i for i, placeholder in enumerate(signature) if placeholder.name == variable]
        if not columns:
            known = ", ".join(placeholder.name for placeholder in signature) or "none"
            raise EnvError(f"grammar: {variable!r} is not bound here; bound: {known}")
        self.columns.add(columns[-1])
        return columns[-1]

    def _query(self, condition: Condition, signature: Signature) -> tuple[Query, Signature]:
        """A condition as a join in its written order, and the placeholders of the resulting rows.

        As in the official engine, new placeholders take values that no other placeholder has.
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
                stages.append(Filter(slot, getter(columns), True))
                continue
            stages.append(Join(slot, getter(columns), tuple_getter(new)))
            stages.append(AllDifferent(old))
            stages.extend(
                Filter(self.schema.slot(type_predicate(bound[i].type), (0,)), getter([i]), True)
                for i in range(old, len(bound))
            )
        return Query(tuple(stages)), tuple(bound)

    def _check(self, predicate: str, parameters: Sequence[Placeholder]) -> None:
        unknown = next((p for p in parameters if p.type not in self.types), None)
        if unknown is not None:
            raise EnvError(
                f"grammar: type {unknown.type!r} in a condition on {predicate!r} is not in the domain"
            )
        if predicate.removeprefix("not_") in self.unsafe:
            raise EnvError(
                f"grammar: conditions on {predicate!r}, which has conditional effects, are not supported"
            )
        if len(set(parameters)) != len(parameters):
            raise EnvError(f"grammar: a condition on {predicate!r} names a placeholder twice")


def type_predicate(kind: str) -> str:
    """The unary relation that holds the objects of a type and its subtypes."""
    return f"type:{kind}"
