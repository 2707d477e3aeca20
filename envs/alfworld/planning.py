"""Query planning: turns a condition in normal form into joins, cheapest relation first.

The order only affects speed. Fan-outs are measured on the facts of the first problem that uses a rule set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from envs.alfworld.pddl import Conjunct, Literal
from envs.alfworld.relations import (
    Equal,
    Fact,
    Filter,
    Join,
    NotExists,
    Query,
    Schema,
    Stage,
    getter,
    tuple_getter,
)
from envs.alfworld.text_compiler import type_predicate
from envs.base import EnvError


@dataclass(slots=True)
class Planner:
    """Plans queries whose rows start with `constants` (the object names in the rules)."""

    schema: Schema
    constants: list[str]
    facts: Mapping[str, Sequence[Fact]]
    _fan_outs: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)

    def plan(
        self, conjunct: Conjunct, columns: Mapping[str, int], width: int
    ) -> tuple[Query, dict[str, int]]:
        """A query over rows of `width` columns; `columns` maps the variables already bound to columns.

        Returns the query and the columns of all variables in its rows.
        """
        return _Plan(self, conjunct, dict(columns), width).run()

    def fan_out(self, predicate: str, bound: tuple[int, ...]) -> float:
        """Mean number of facts per value of the `bound` positions."""
        if (predicate, bound) not in self._fan_outs:
            facts, key = self.facts.get(predicate, ()), getter(bound)
            self._fan_outs[predicate, bound] = len(facts) / max(1, len({key(fact) for fact in facts}))
        return self._fan_outs[predicate, bound]


def constants_of(conjuncts: Iterable[Conjunct]) -> set[str]:
    """The object names that occur in a condition."""
    names: set[str] = set()
    for conjunct in conjuncts:
        names.update(
            name for literal in conjunct.literals for name in literal.arguments if not name.startswith("?")
        )
        names.update(*map(constants_of, conjunct.refuted))
    return names


def predicates_of(conjuncts: Iterable[Conjunct]) -> set[str]:
    """The predicates that occur in a condition."""
    names: set[str] = set()
    for conjunct in conjuncts:
        names.update(literal.predicate for literal in conjunct.literals)
        names.update(*map(predicates_of, conjunct.refuted))
    return names


class _Plan:
    """Greedy planning of one query."""

    def __init__(self, planner: Planner, conjunct: Conjunct, columns: dict[str, int], width: int) -> None:
        self.planner = planner
        self.conjunct = conjunct
        self.columns = columns
        self.width = width
        self.stages: list[Stage] = []
        # a variable that is already bound (a parameter in an effect) has a known type
        typed = [Literal(type_predicate(k), (v,)) for v, k in conjunct.variables.items() if v not in columns]
        self.open = [*conjunct.literals, *typed]

    def run(self) -> tuple[Query, dict[str, int]]:
        self._settle()
        while True:
            positive = [literal for literal in self.open if literal.positive and literal.predicate != "="]
            if not positive:
                break
            self._join(
                min(positive, key=lambda it: self.planner.fan_out(it.predicate, self._bound_positions(it)))
            )
            self._settle()
        if self.open:
            raise EnvError(f"PDDL: variables of {self.open[0]} cannot be bound")
        for condition in self.conjunct.refuted:
            queries = tuple(self.planner.plan(part, self.columns, self.width)[0] for part in condition)
            self.stages.append(NotExists(queries))
        return Query(tuple(self.stages)), self.columns

    def _column(self, name: str) -> int | None:
        return self.columns.get(name) if name.startswith("?") else self.planner.constants.index(name)

    def _bound_positions(self, literal: Literal) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(literal.arguments) if self._column(name) is not None)

    def _settle(self) -> None:
        """Filters by every literal whose arguments are all bound."""
        for literal in tuple(self.open):
            columns = [column for name in literal.arguments if (column := self._column(name)) is not None]
            if len(columns) < len(literal.arguments):
                continue
            self.open.remove(literal)
            if literal.predicate == "=":
                self.stages.append(Equal(columns[0], columns[1], literal.positive))
            else:
                slot = self.planner.schema.slot(literal.predicate, tuple(range(len(columns))))
                self.stages.append(Filter(slot, getter(columns), literal.positive))

    def _join(self, literal: Literal) -> None:
        self.open.remove(literal)
        known = self._bound_positions(literal)
        key = [column for name in literal.arguments if (column := self._column(name)) is not None]
        new = [i for i in range(len(literal.arguments)) if i not in known]
        slot = self.planner.schema.slot(literal.predicate, known)
        self.stages.append(Join(slot, getter(key), tuple_getter(new)))
        for i in new:
            name = literal.arguments[i]
            if name in self.columns:
                self.stages.append(Equal(self.columns[name], self.width, True))
            else:
                self.columns[name] = self.width
            self.width += 1
