"""A PDDL parser: domains, problems, and conditions in disjunctive normal form.

It supports what ALFWorld's domain and problems use: typing, quantified and disjunctive preconditions,
conditional effects, equality and (ignored) action costs. Names are lower-cased, as in the official planner.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from typing import TypeAlias

from envs.base import EnvError

SExpr: TypeAlias = "str | list[SExpr]"

_TOKEN = re.compile(r"[()]|\?[^\s()?]*|[^\s()?]+")
_COMMENT = re.compile(r";[^\n]*")
_NUMERIC = frozenset({"increase", "decrease", "assign", "scale-up", "scale-down"})


@dataclass(frozen=True, slots=True)
class Literal:
    """A predicate over variables (`?x`) and object names, possibly negated."""

    predicate: str
    arguments: tuple[str, ...]
    positive: bool = True

    def negated(self) -> Literal:
        return Literal(self.predicate, self.arguments, not self.positive)


@dataclass(frozen=True, slots=True)
class Conjunct:
    """One disjunct of a condition: literals that must all hold, over `variables` (name -> type).

    `refuted` holds conditions in the same normal form, none of whose disjuncts may have a solution; universal
    quantifiers become such conditions.
    """

    variables: dict[str, str]
    literals: tuple[Literal, ...]
    refuted: tuple[tuple[Conjunct, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Effect:
    """`literal` becomes true for every binding of `variables` under which `condition` held before."""

    literal: Literal
    variables: dict[str, str] = field(default_factory=dict)
    condition: tuple[Conjunct, ...] | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """A lifted action; `parameters` are (name, type) in the order of the domain file, names with `?`."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    precondition: tuple[Conjunct, ...]
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class Domain:
    """A parsed PDDL domain; `supertypes` maps each type to itself and everything above it."""

    supertypes: dict[str, frozenset[str]]
    constants: dict[str, str]
    actions: tuple[Action, ...]

    @property
    def effects(self) -> list[Effect]:
        """The effects of all actions."""
        return [effect for action in self.actions for effect in action.effects]

    @property
    def fluents(self) -> frozenset[str]:
        """Predicates that some action can change."""
        return frozenset(effect.literal.predicate for effect in self.effects)


@dataclass(frozen=True, slots=True)
class Problem:
    """A parsed PDDL problem: objects (name -> type), facts true at the start, and the goal."""

    objects: dict[str, str]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    goal: tuple[Conjunct, ...]


def read(text: str) -> list[SExpr]:
    """The one parenthesized expression in `text`; raises EnvError if it is truncated or malformed."""
    stack: list[list[SExpr]] = [[]]
    for token in _TOKEN.findall(_COMMENT.sub("", text.lower())):
        if token == "(":
            stack.append([])
        elif token != ")":
            stack[-1].append(token)
        elif len(stack) == 1:
            raise EnvError("PDDL: a closing parenthesis without an opening one")
        else:
            closed = stack.pop()
            stack[-1].append(closed)
    if len(stack) != 1 or len(stack[0]) != 1 or isinstance(stack[0][0], str):
        raise EnvError(
            "PDDL: expected one complete (define ...) expression; the text is truncated or malformed"
        )
    return stack[0][0]


def parse_domain(text: str) -> Domain:
    """Parses a PDDL domain."""
    sections = _sections(read(text))
    parents = dict(_typed(part for section in sections.get(":types", []) for part in section))
    constants = dict(_typed(part for section in sections.get(":constants", []) for part in section))
    actions = tuple(_action(section) for section in sections.get(":action", []))
    unknown = sorted(
        set(sections) - {":requirements", ":types", ":constants", ":predicates", ":functions", ":action"}
    )
    if unknown:
        raise EnvError(f"PDDL domain: section {unknown[0]} is not supported")
    supertypes: dict[str, frozenset[str]] = {}
    for kind in ("object", *parents):
        above = [kind]
        while above[-1] in parents and parents[above[-1]] not in above:
            above.append(parents[above[-1]])
        supertypes[kind] = frozenset((*above, "object"))
    return Domain(supertypes, constants, actions)


def parse_problem(text: str) -> Problem:
    """Parses a PDDL problem."""
    sections = _sections(read(text))
    if ":goal" not in sections or ":init" not in sections:
        raise EnvError("PDDL problem: needs an (:init ...) and a (:goal ...)")
    objects = dict(_typed(part for section in sections.get(":objects", []) for part in section))
    # distances are not used, and what is not listed is false anyway
    listed = [fact for part in sections[":init"][0] if (fact := _list(part))[:1] not in (["="], ["not"])]
    facts = tuple((literal.predicate, literal.arguments) for literal in (_literal(f, True) for f in listed))
    return Problem(objects, facts, to_dnf(sections[":goal"][0][0]))


def to_dnf(formula: SExpr, variables: dict[str, str] | None = None) -> tuple[Conjunct, ...]:
    """`formula` in disjunctive normal form; existential variables are added to the free `variables`."""
    fresh = count()
    free = variables or {}
    return tuple(
        Conjunct({**free, **part.variables}, part.literals, part.refuted)
        for part in _normal(formula, True, {name: name for name in free}, fresh)
    )


def _sections(tree: Sequence[SExpr]) -> dict[str, list[list[SExpr]]]:
    if not tree or tree[0] != "define":
        raise EnvError("PDDL: expected (define ...)")
    sections: dict[str, list[list[SExpr]]] = {}
    for part in tree[2:]:
        if not isinstance(part, list) or not part or not isinstance(part[0], str):
            raise EnvError("PDDL: expected sections such as (:init ...)")
        sections.setdefault(part[0], []).append(part[1:])
    return sections


def _typed(tokens: Iterator[SExpr] | Sequence[SExpr]) -> Iterator[tuple[str, str]]:
    """(name, type) pairs of a typed list; names without a type are of type `object`.

    A comma belongs to the type's name, as in the official planner: `(?l - location, ?r - receptacle)` in
    ALFWorld's domain therefore quantifies over the type `location,`, which no object has, and never holds.
    """
    pending: list[str] = []
    stream = iter(tokens)
    for token in stream:
        if not isinstance(token, str):
            raise EnvError(f"PDDL: expected a name in a typed list, got {_show(token)}")
        if token == "-":
            kind = next(stream, None)
            if not isinstance(kind, str):
                raise EnvError(
                    "PDDL: a typed list ends in '-' or uses (either ...), which is not supported"
                )
            yield from ((name, kind) for name in pending)
            pending = []
        else:
            pending.append(token)
    yield from ((name, "object") for name in pending)


def _action(section: list[SExpr]) -> Action:
    name, fields = section[0], section[1:]
    if not isinstance(name, str) or len(fields) % 2:
        raise EnvError(
            f"PDDL action {_show(name)}: expected :parameters, :precondition and :effect with values"
        )
    values = {_show(key): value for key, value in zip(fields[::2], fields[1::2], strict=True)}
    parameters = tuple(_typed(_list(values.get(":parameters", []))))
    precondition = to_dnf(values.get(":precondition", []), dict(parameters))
    effects = tuple(_effects(values.get(":effect", []), dict(parameters), {}, None))
    return Action(name, parameters, precondition, effects)


def _effects(
    tree: SExpr, parameters: dict[str, str], variables: dict[str, str], condition: SExpr | None
) -> Iterator[Effect]:
    parts = _list(tree)
    head = parts[0] if parts else "and"
    if head == "and":
        for part in parts[1:]:
            yield from _effects(part, parameters, variables, condition)
    elif head == "forall" and len(parts) == 3:
        own = dict(_typed(_list(parts[1])))
        yield from _effects(parts[2], parameters, {**variables, **own}, condition)
    elif head == "when" and len(parts) == 3:
        both: SExpr = parts[1] if condition is None else ["and", condition, parts[1]]
        yield from _effects(parts[2], parameters, variables, both)
    elif head not in _NUMERIC:
        normal = None if condition is None else to_dnf(condition, {**parameters, **variables})
        yield Effect(_literal(parts, True), variables, normal)


def _normal(tree: SExpr, positive: bool, scope: dict[str, str], fresh: Iterator[int]) -> list[Conjunct]:
    """Disjunctive normal form of `tree`, negated unless `positive`; `scope` maps names to unique names."""
    parts = _list(tree)
    head = parts[0] if parts else "and"
    if head == "not":
        return _normal(parts[1], not positive, scope, fresh)
    if head == "imply":
        return _normal(["or", ["not", parts[1]], parts[2]], positive, scope, fresh)
    if head in ("and", "or"):
        alternatives = [_normal(part, positive, scope, fresh) for part in parts[1:]]
        if (head == "and") != positive:
            return [part for group in alternatives for part in group]
        return [
            Conjunct(
                {name: kind for part in parts for name, kind in part.variables.items()},
                tuple(literal for part in parts for literal in part.literals),
                tuple(condition for part in parts for condition in part.refuted),
            )
            for parts in product(*alternatives)
        ]
    if head in ("exists", "forall"):
        return _quantified(parts, (head == "exists") == positive, positive, scope, fresh)
    literal = _literal(parts, positive)
    renamed = tuple(scope.get(name, name) for name in literal.arguments)
    unbound = next((name for name in renamed if name.startswith("?") and name not in scope.values()), None)
    if unbound is not None:
        raise EnvError(f"PDDL: variable {unbound} of {_show(tree)} is not declared")
    return [Conjunct({}, (Literal(literal.predicate, renamed, positive),))]


def _quantified(
    parts: list[SExpr], exists: bool, positive: bool, scope: dict[str, str], fresh: Iterator[int]
) -> list[Conjunct]:
    if len(parts) != 3:
        raise EnvError(f"PDDL: {_show(parts)} needs variables and one condition")
    renaming = {name: f"{name}#{next(fresh)}" for name, _ in _typed(_list(parts[1]))}
    variables = {renaming[name]: kind for name, kind in _typed(_list(parts[1]))}
    inner = {**scope, **renaming}
    # forall x: A  is the same as  not exists x: not A
    body = _normal(parts[2], positive if exists else not positive, inner, fresh)
    bound = [Conjunct({**variables, **part.variables}, part.literals, part.refuted) for part in body]
    return bound if exists else [Conjunct({}, (), (tuple(bound),))]


def _literal(parts: Sequence[SExpr], positive: bool) -> Literal:
    if parts and parts[0] == "not" and len(parts) == 2:
        return _literal(_list(parts[1]), not positive)
    if not parts or not all(isinstance(part, str) for part in parts):
        raise EnvError(f"PDDL: expected (predicate argument ...), got {_show(list(parts))}")
    names = [str(part) for part in parts]
    return Literal(names[0], tuple(names[1:]), positive)


def _list(tree: SExpr) -> list[SExpr]:
    if isinstance(tree, str):
        raise EnvError(f"PDDL: expected a list, got {tree!r}")
    return tree


def _show(tree: SExpr) -> str:
    text = tree if isinstance(tree, str) else f"({' '.join(map(_show, tree))})"
    return text if len(text) <= 80 else text[:77] + "..."
