"""Join orders: turns a condition in normal form into a query, cheapest relation first.

The order only matters for speed. Fan-outs are measured on the facts of the first problem a rule set meets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from envs.alfworld.pddl import Conjunct, Literal
from envs.alfworld.relations import (
    Fact,
    Match,
    Query,
    Refute,
    Same,
    Schema,
    Stage,
    Test,
    getter,
    tuple_getter,
)
from envs.alfworld.story import type_predicate
from envs.base import EnvironmentError


@dataclass(slots=True)
class Planner:
    """Plans queries whose rows start with `constants` (the object names the rules mention)."""

    schema: Schema
    constants: list[str]
    facts: Mapping[str, Sequence[Fact]]
    _fan_outs: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)

    def plan(
        self, conjunct: Conjunct, columns: Mapping[str, int], width: int
    ) -> tuple[Query, dict[str, int]]:
        """A query from rows of `width` columns, of which `columns` names the variables already bound.

        Returns it with the columns of all variables in its rows.
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
    """One greedy planning run."""

    def __init__(self, planner: Planner, conjunct: Conjunct, columns: dict[str, int], width: int) -> None:
        self.planner = planner
        self.conjunct = conjunct
        self.columns = columns
        self.width = width
        self.stages: list[Stage] = []
        # a parameter may be bound already (the start row of an effect), then its type is known too
        typed = [Literal(type_predicate(k), (v,)) for v, k in conjunct.variables.items() if v not in columns]
        self.open = [*conjunct.literals, *typed]

    def run(self) -> tuple[Query, dict[str, int]]:
        self._settle()
        while True:
            positive = [literal for literal in self.open if literal.positive and literal.predicate != "="]
            if not positive:
                break
            self._match(min(positive, key=self._cost))
            self._settle()
        if self.open:
            raise EnvironmentError(f"PDDL: variables of {self.open[0]} cannot be bound")
        self._refute()
        return Query(tuple(self.stages)), self.columns

    def _column(self, name: str) -> int | None:
        return self.columns.get(name) if name.startswith("?") else self.planner.constants.index(name)

    def _known(self, literal: Literal) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(literal.arguments) if self._column(name) is not None)

    def _cost(self, literal: Literal) -> float:
        return self.planner.fan_out(literal.predicate, self._known(literal))

    def _settle(self) -> None:
        """Tests every literal whose arguments are all bound by now."""
        for literal in tuple(self.open):
            columns = [column for name in literal.arguments if (column := self._column(name)) is not None]
            if len(columns) < len(literal.arguments):
                continue
            self.open.remove(literal)
            if literal.predicate == "=":
                self.stages.append(Same(columns[0], columns[1], literal.positive))
            else:
                slot = self.planner.schema.slot(literal.predicate, tuple(range(len(columns))))
                self.stages.append(Test(slot, getter(columns), literal.positive))

    def _match(self, literal: Literal) -> None:
        self.open.remove(literal)
        known = self._known(literal)
        key = [column for name in literal.arguments if (column := self._column(name)) is not None]
        new = [i for i in range(len(literal.arguments)) if i not in known]
        slot = self.planner.schema.slot(literal.predicate, known)
        self.stages.append(Match(slot, getter(key), tuple_getter(new)))
        for i in new:
            name = literal.arguments[i]
            if name in self.columns:
                self.stages.append(Same(self.columns[name], self.width, True))
            else:
                self.columns[name] = self.width
            self.width += 1

    def _refute(self) -> None:
        for condition in self.conjunct.refuted:
            queries = tuple(self.planner.plan(part, self.columns, self.width)[0] for part in condition)
            self.stages.append(Refute(queries))
