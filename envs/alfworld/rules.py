"""One domain and one grammar, compiled together; shared by all games with the same two texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from envs.alfworld.grammar import Placeholder, parse_grammar, parse_symbols
from envs.alfworld.pddl import Action, Conjunct, Domain, Effect, Literal
from envs.alfworld.planning import Planner, constants_of, predicates_of
from envs.alfworld.relations import Fact, Getter, Query, Relations, Row, Schema, getter, tuple_getter
from envs.alfworld.text_compiler import Node, TextCompiler, type_predicate
from envs.base import EnvError


@dataclass(frozen=True, slots=True)
class CompiledEffect:
    """`predicate` of the selected arguments changes for every solution of any of `queries` (None: always)."""

    predicate: str
    positive: bool
    arguments: tuple[Callable[[Sequence[int]], Row], ...]
    queries: tuple[Query | None, ...]

    def facts(self, row: Row, state: Relations) -> list[Fact]:
        """The facts this effect changes; rows start with the constants, then the action's arguments."""
        changed: list[Fact] = []
        for arguments, query in zip(self.arguments, self.queries, strict=True):
            rows = [row] if query is None else query.rows(row, state)
            changed.extend(arguments(match) for match in rows)
        return changed


@dataclass(frozen=True, slots=True)
class CompiledAction:
    """An action whose instances can be enumerated, rendered as commands and applied."""

    name: str
    queries: tuple[tuple[Query, Callable[[Sequence[int]], Row]], ...]
    idle: tuple[tuple[int, int], ...] | None  # argument pairs whose equality makes the action change nothing
    effects: tuple[CompiledEffect, ...]
    template: Node
    typed_by: Getter | None  # the arguments that determine the command; None: it depends on the state too
    feedback: Node
    reads: int | None  # slot of the only changing predicate that applicability depends on

    def instances(self, constants: Row, state: Relations) -> list[Row]:
        """The argument tuples for which the action is applicable and changes something."""
        found = [arguments(row) for query, arguments in self.queries for row in query.rows(constants, state)]
        if self.idle is not None:
            found = [row for row in found if not all(row[i] == row[j] for i, j in self.idle)]
        return list(dict.fromkeys(found)) if len(self.queries) > 1 else found

    def apply(self, row: Row, state: Relations) -> None:
        """Change `state`; `row` is the constants, then the action's arguments."""
        changes = [(effect, effect.facts(row, state)) for effect in self.effects]
        added = {(effect.predicate, fact) for effect, facts in changes if effect.positive for fact in facts}
        for effect, facts in changes:
            for fact in facts:
                if not effect.positive and (effect.predicate, fact) not in added:
                    state.remove(effect.predicate, fact)
                    state.add(f"not_{effect.predicate}", fact)
        for predicate, fact in added:
            state.add(predicate, fact)
            state.remove(f"not_{predicate}", fact)


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that games with one domain and one grammar share."""

    domain: Domain
    schema: Schema
    constants: tuple[str, ...]
    fluents: frozenset[str]
    actions: tuple[CompiledAction, ...]
    intro: Node


def compile_rules(domain: Domain, grammar_text: str, facts: Mapping[str, Sequence[Fact]]) -> Rules:
    """Compiles a domain and a grammar; `facts` of one problem are the planner's size estimates."""
    grammar = parse_grammar(grammar_text)
    schema = Schema()
    conditions = [conjunct for action in domain.actions for conjunct in action.precondition]
    for effect in domain.effects:
        conditions += [Conjunct({}, (effect.literal,)), *(effect.condition or ())]
    constants = sorted(constants_of(conditions))
    planner = Planner(schema, constants, facts)
    conditional = {effect.literal.predicate for effect in domain.effects if effect.condition is not None}
    compiler = TextCompiler(grammar, schema, frozenset(domain.supertypes), frozenset(conditional))
    intro = compiler.symbols(parse_symbols("#intro#"), ())
    actions = []
    for action in domain.actions:
        text = grammar.actions.get(action.name)
        if text is None:
            raise EnvError(f"grammar: action {action.name!r} of the domain has no template")
        signature = tuple(Placeholder(name.removeprefix("?"), kind) for name, kind in action.parameters)
        compiler.clear()
        template = compiler.symbols(text.template, signature)
        fixed = not {name.removeprefix("not_") for name in compiler.predicates} & domain.fluents
        typed_by = getter(sorted(i for i in compiler.columns if i < len(signature))) if fixed else None
        feedback = compiler.symbols(text.feedback, signature)
        actions.append(_action(action, planner, domain.fluents, template, typed_by, feedback))
    negated = {f"not_{name}" for name in domain.fluents}
    return Rules(domain, schema, tuple(constants), domain.fluents | negated, tuple(actions), intro)


def _action(
    action: Action,
    planner: Planner,
    fluents: frozenset[str],
    template: Node,
    typed_by: Getter | None,
    feedback: Node,
) -> CompiledAction:
    start = len(planner.constants)
    names = [name for name, _ in action.parameters]
    queries = []
    for conjunct in action.precondition:
        query, columns = planner.plan(conjunct, {}, start)
        queries.append((query, tuple_getter([columns[name] for name in names])))
    columns = {name: start + i for i, name in enumerate(names)}
    effects = tuple(_effect(effect, planner, columns) for effect in action.effects)
    changing = predicates_of(action.precondition) & fluents
    simple = typed_by is not None and len(changing) == 1
    return CompiledAction(
        name=action.name,
        queries=tuple(queries),
        idle=_idle(action),
        effects=effects,
        template=template,
        typed_by=typed_by,
        feedback=feedback,
        reads=planner.schema.slot(next(iter(changing)), ()) if simple else None,
    )


def _effect(effect: Effect, planner: Planner, columns: dict[str, int]) -> CompiledEffect:
    width = len(planner.constants) + len(columns)
    arguments, queries = [], []
    unconditional = (Conjunct(effect.variables, ()),) if effect.variables else (None,)
    for conjunct in unconditional if effect.condition is None else effect.condition:
        query, bound = (None, columns) if conjunct is None else planner.plan(conjunct, columns, width)
        places = [
            bound[n] if n.startswith("?") else planner.constants.index(n) for n in effect.literal.arguments
        ]
        arguments.append(tuple_getter(places))
        queries.append(query)
    literal = effect.literal
    return CompiledEffect(literal.predicate, literal.positive, tuple(arguments), tuple(queries))


def _idle(action: Action) -> tuple[tuple[int, int], ...] | None:
    """The argument pairs that, if all are equal, make every effect already true; None if that cannot happen.

    The official planner drops such instances (going to the present location), so they are not admissible.
    """
    position = {name: i for i, (name, _) in enumerate(action.parameters)}
    required = set(action.precondition[0].literals) if len(action.precondition) == 1 else set()
    pairs: set[tuple[int, int]] = set()
    added = [effect for effect in action.effects if effect.literal.positive]
    for effect in added:
        if effect.condition is not None or effect.variables:
            return None
        match = next((literal for literal in required if _unifiable(effect.literal, literal)), None)
        if match is None:
            return None
        both = zip(effect.literal.arguments, match.arguments, strict=True)
        pairs.update((position[a], position[b]) for a, b in both if a != b)
    # a deletion is undone by an addition of the same fact, which equal pairs imply
    deleted = [effect.literal.negated() for effect in action.effects if not effect.literal.positive]
    undone = all(any(_unifiable(literal, effect.literal) for effect in added) for literal in deleted)
    return tuple(sorted(pairs)) if undone else None


def _unifiable(one: Literal, other: Literal) -> bool:
    if (one.predicate, one.positive, len(one.arguments)) != (
        other.predicate,
        other.positive,
        len(other.arguments),
    ):
        return False
    pairs = zip(one.arguments, other.arguments, strict=True)
    return all(a == b or (a.startswith("?") and b.startswith("?")) for a, b in pairs)


def type_facts(
    objects: Mapping[str, str], numbers: Mapping[str, int], domain: Domain
) -> dict[str, list[Fact]]:
    """The unary relations of all types; raises EnvError for an object of an unknown type."""
    facts: dict[str, list[Fact]] = {}
    for name, kind in objects.items():
        if kind not in domain.supertypes:
            raise EnvError(f"PDDL problem: object {name!r} has unknown type {kind!r}")
        for above in domain.supertypes[kind]:
            facts.setdefault(type_predicate(above), []).append((numbers[name],))
    return facts
