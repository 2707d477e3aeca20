"""Facts as indexed relations, and conjunctive queries over them as left-deep joins.

Objects are small integers in the order of their names, so sorted facts are in the official order. Every
access path (predicate, bound positions) of a query is one index: key -> sorted tuple of facts. Buckets are
immutable, so a new episode is a shallow copy of the indexes that can change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeAlias

Fact: TypeAlias = tuple[int, ...]
Row: TypeAlias = tuple[int, ...]
Index: TypeAlias = dict[Any, tuple[Fact, ...]]
Getter: TypeAlias = Callable[[Sequence[int]], Any]


def getter(positions: Sequence[int]) -> Getter:
    """Selects `positions` of a row or fact as an index key: a scalar for one position, a tuple otherwise."""
    if not positions:
        return lambda row: ()
    return itemgetter(*positions)


def tuple_getter(positions: Sequence[int]) -> Callable[[Sequence[int]], Row]:
    """Selects `positions` of a row or fact, always as a tuple."""
    if len(positions) == 1:
        (position,) = positions
        return lambda row: (row[position],)
    return getter(positions)


@dataclass(slots=True)
class Schema:
    """The access paths of all queries of one rule set, numbered (by slot) in the order of registration."""

    paths: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)

    def slot(self, predicate: str, positions: tuple[int, ...]) -> int:
        return self.paths.setdefault((predicate, positions), len(self.paths))

    def of(self, predicate: str) -> list[tuple[int, Getter]]:
        """(slot, key of a fact) of every access path of `predicate`."""
        return [
            (slot, getter(positions)) for (name, positions), slot in self.paths.items() if name == predicate
        ]


class Relations:
    """The facts of one state under a schema; `copy` is cheap."""

    __slots__ = ("_paths", "indexes")

    def __init__(self, schema: Schema, facts: Mapping[str, Iterable[Fact]], fluents: frozenset[str]) -> None:
        self.indexes: list[Index] = [{} for _ in schema.paths]
        self._paths = {predicate: schema.of(predicate) for predicate in fluents}
        for (predicate, positions), slot in schema.paths.items():
            key = getter(positions)
            groups: dict[Any, list[Fact]] = {}
            for fact in facts.get(predicate, ()):
                groups.setdefault(key(fact), []).append(fact)
            self.indexes[slot] = {key: tuple(sorted(group)) for key, group in groups.items()}

    def copy(self) -> Relations:
        """An independent copy; indexes of predicates that cannot change are shared."""
        twin = object.__new__(Relations)
        twin._paths = self._paths
        twin.indexes = self.indexes.copy()
        for paths in self._paths.values():
            for slot, _ in paths:
                twin.indexes[slot] = self.indexes[slot].copy()
        return twin

    def add(self, predicate: str, fact: Fact) -> None:
        """Makes `fact` true; has no effect if it already is."""
        for slot, key in self._paths[predicate]:
            index, at = self.indexes[slot], key(fact)
            bucket = index.get(at, ())
            if fact not in bucket:
                index[at] = tuple(sorted((*bucket, fact)))

    def remove(self, predicate: str, fact: Fact) -> None:
        """Makes `fact` false; has no effect if it already is."""
        for slot, key in self._paths[predicate]:
            index, at = self.indexes[slot], key(fact)
            bucket = index.get(at, ())
            if fact in bucket:
                rest = tuple(other for other in bucket if other != fact)
                if rest:
                    index[at] = rest
                else:
                    del index[at]


@dataclass(frozen=True, slots=True)
class Join:
    """Extends each row by the new values of every matching fact, in the order of the facts."""

    slot: int
    key: Getter  # of the row
    new: Callable[[Sequence[int]], Row]  # of the fact

    def apply(self, rows: list[Row], state: Relations) -> list[Row]:
        get, key, new = state.indexes[self.slot].get, self.key, self.new
        return [row + new(fact) for row in rows for fact in get(key(row), ())]


@dataclass(frozen=True, slots=True)
class Filter:
    """Keeps the rows for which a fully bound fact is true (or false)."""

    slot: int
    key: Getter
    positive: bool

    def apply(self, rows: list[Row], state: Relations) -> list[Row]:
        index, key = state.indexes[self.slot], self.key
        if self.positive:
            return [row for row in rows if key(row) in index]
        return [row for row in rows if key(row) not in index]


@dataclass(frozen=True, slots=True)
class Equal:
    """Keeps the rows whose two values are equal (or different)."""

    left: int
    right: int
    equal: bool

    def apply(self, rows: list[Row], state: Relations) -> list[Row]:
        return [row for row in rows if (row[self.left] == row[self.right]) == self.equal]


@dataclass(frozen=True, slots=True)
class NotExists:
    """Keeps the rows for which none of the queries has a solution (an anti-join)."""

    queries: tuple[Query, ...]

    def apply(self, rows: list[Row], state: Relations) -> list[Row]:
        return [row for row in rows if not any(query.rows(row, state) for query in self.queries)]


@dataclass(frozen=True, slots=True)
class AllDifferent:
    """Keeps the rows whose values from column `start` on occur once in the row."""

    start: int

    def apply(self, rows: list[Row], state: Relations) -> list[Row]:
        start = self.start
        return [row for row in rows if all(row.count(value) == 1 for value in row[start:])]


Stage: TypeAlias = Join | Filter | Equal | NotExists | AllDifferent


@dataclass(frozen=True, slots=True)
class Query:
    """A left-deep join: stages applied to one start row, stopping as soon as no row is left."""

    stages: tuple[Stage, ...]

    def rows(self, start: Row, state: Relations) -> list[Row]:
        """All solutions that extend `start`, in lexicographic order of the matched facts."""
        rows = [start]
        for stage in self.stages:
            rows = stage.apply(rows, state)
            if not rows:
                break
        return rows
