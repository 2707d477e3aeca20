"""ALFWorld games played natively, with the text of the official engine, byte for byte.

`Game` is one parsed problem, shared and immutable; `Play` is one episode of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from envs.alfworld.grammar import parse_symbols
from envs.alfworld.pddl import Domain, Problem, parse_domain, parse_problem
from envs.alfworld.planning import Planner, constants_of
from envs.alfworld.relations import Fact, Relations, Row, Schema
from envs.alfworld.rules import CompiledAction, Rules, compile_rules, type_facts
from envs.alfworld.story import Scene
from envs.base import EnvironmentError

NOTHING_HAPPENS = "Nothing happens."
Commands: TypeAlias = dict[str, tuple[CompiledAction, Row]]

_HOLE = "\ue000"
_MOST_OFFERS = 1024
_TASK = re.compile(r'("task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*)("(?:[^"\\]|\\.)*")')


class Game:
    """A problem under its rules: names, initial facts, goal. Build it with `compile_game`."""

    def __init__(
        self,
        rules: Rules,
        problem: Problem,
        names: Sequence[str],
        facts: Mapping[str, Sequence[Fact]],
        task: str,
    ) -> None:
        self.task = task
        numbers = {name: i for i, name in enumerate(names)}
        constants = [*rules.constants, *sorted(constants_of(problem.goal) - set(rules.constants))]
        schema = Schema(dict(rules.schema.paths))
        planner = Planner(schema, constants, facts)
        self.rules = rules
        self.goal = tuple(planner.plan(conjunct, {}, len(constants))[0] for conjunct in problem.goal)
        self.goal_constants: Row = tuple(numbers.get(name, -1) for name in constants)
        self.constants: Row = self.goal_constants[: len(rules.constants)]
        self.start = Relations(schema, facts, rules.fluents)
        used = {name for _, arguments in problem.facts for name in arguments}
        self.problem = problem
        self.titles = display_names(used)
        kinds = {**rules.domain.constants, **problem.objects}
        self.attributes: dict[str, Sequence[str]] = {
            "name": [self.titles.get(name, name) for name in names],
            "id": names,
            "type": [kinds[name] for name in names],
        }
        # filled as they come up: how ground actions are typed, and all commands of an action in a situation
        self.typed: dict[tuple[str, Any], str] = {}
        self.offers: dict[tuple[str, tuple[Fact, ...]], Commands] = {}

    def play(self) -> Play:
        """A new episode."""
        return Play(self)


class Play:
    """One episode: `feedback`, `admissible` (sorted commands) and `won` after each `step`."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.state = game.start.copy()
        self._scene = Scene(self.state, game.attributes)
        self.feedback = game.rules.intro.write((), self._scene).replace(_HOLE, game.task)
        self._refresh()

    def step(self, command: str) -> bool:
        """Plays a command; an inadmissible one changes nothing. Returns whether it was admissible."""
        chosen = self._commands.get(command.strip())
        if chosen is None:
            self.feedback = NOTHING_HAPPENS
            return False
        action, arguments = chosen
        self._apply(action, arguments)
        self.feedback = action.feedback.write(arguments, self._scene)
        self._refresh()
        return True

    def _apply(self, action: CompiledAction, arguments: Row) -> None:
        row = self.game.constants + arguments
        changes = [(effect, effect.facts(row, self.state)) for effect in action.effects]
        added = {(effect.predicate, fact) for effect, facts in changes if effect.positive for fact in facts}
        for effect, facts in changes:
            for fact in facts:
                if not effect.positive and (effect.predicate, fact) not in added:
                    self.state.remove(effect.predicate, fact)
                    self.state.add(f"not_{effect.predicate}", fact)
        for predicate, fact in added:
            self.state.add(predicate, fact)
            self.state.remove(f"not_{predicate}", fact)

    def _refresh(self) -> None:
        commands: Commands = {}
        for action in reversed(self.game.rules.actions):
            commands.update(self._offer(action))
        self._commands = commands
        self.admissible = tuple(sorted(commands))
        self.won = any(query.rows(self.game.goal_constants, self.state) for query in self.game.goal)

    def _offer(self, action: CompiledAction) -> Commands:
        """The commands that one action admits now."""
        if action.reads is None:
            return self._commands_of(action)
        key = (action.name, self.state.indexes[action.reads].get((), ()))
        offers = self.game.offers
        if key not in offers:
            if len(offers) == _MOST_OFFERS:
                offers.clear()
            offers[key] = self._commands_of(action)
        return offers[key]

    def _commands_of(self, action: CompiledAction) -> Commands:
        commands: Commands = {}
        for arguments in action.instances(self.game.constants, self.state):
            commands.setdefault(self._type(action, arguments), (action, arguments))
        return commands

    def _type(self, action: CompiledAction, arguments: Row) -> str:
        if action.typed_by is None:
            return action.template.write(arguments, self._scene)
        key = (action.name, action.typed_by(arguments))
        text = self.game.typed.get(key)
        if text is None:
            text = self.game.typed[key] = action.template.write(arguments, self._scene)
        return text


def split_task(grammar_text: str) -> tuple[str, str]:
    """The grammar with a hole for the task's sentence, and that sentence.

    Games differ in this sentence alone, so their rules can be shared.
    """
    match = _TASK.search(grammar_text)
    if match is None:
        return grammar_text, ""
    try:
        symbols = parse_symbols(json.loads(match[2]))
    except ValueError:
        return grammar_text, ""
    if len(symbols) != 1 or not isinstance(symbols[0], str):
        return grammar_text, ""
    return grammar_text[: match.start(2)] + json.dumps(_HOLE) + grammar_text[match.end(2) :], symbols[0]


def compile_game(domain_text: str, grammar_text: str, problem_text: str) -> Game:
    """Parses a game's three texts; rules are compiled once per distinct domain and grammar."""
    domain = _domain(domain_text)
    problem = parse_problem(problem_text)
    objects = {**domain.constants, **problem.objects}
    names = sorted(objects)
    numbers = {name: i for i, name in enumerate(names)}
    facts: dict[str, list[Fact]] = type_facts(objects, numbers, domain)
    for predicate, arguments in dict.fromkeys(problem.facts):
        undeclared = next((name for name in arguments if name not in numbers), None)
        if undeclared is not None:
            raise EnvironmentError(f"PDDL problem: object {undeclared!r} is used but not declared")
        facts.setdefault(predicate, []).append(tuple(numbers[name] for name in arguments))
    shared, task = split_task(grammar_text)
    return Game(_rules(domain_text, shared, facts), problem, names, facts, task)


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """What the player calls each object: `desk 1`; of one name the first id in order gets the last number."""
    stems = {name: _stem(name) for name in sorted(ids)}
    left = Counter(stem for name, stem in stems.items() if "_bar_" in name)
    titles: dict[str, str] = {}
    for name, stem in stems.items():
        if "_bar_" in name:
            titles[name] = f"{stem} {left[stem]}"
            left[stem] -= 1
        else:
            titles[name] = f"{stem} "
    return titles


def _stem(name: str) -> str:
    stem, bar, _ = name.partition("_bar_")
    return stem + "basin" if bar and "basin" in name else stem


@lru_cache(maxsize=16)
def _domain(text: str) -> Domain:
    return parse_domain(text)


_MOST_RULES = 64
_RULES: dict[tuple[str, str], Rules] = {}


def _rules(domain_text: str, grammar_text: str, facts: Mapping[str, Sequence[Fact]]) -> Rules:
    key = (domain_text, grammar_text)
    if len(_RULES) == _MOST_RULES:
        _RULES.clear()
    if key not in _RULES:
        _RULES[key] = compile_rules(_domain(domain_text), grammar_text, facts)
    return _RULES[key]
