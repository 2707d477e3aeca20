"""An interpreter of ALFWorld games whose text is byte-identical to the official engine's.

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
from envs.alfworld.pddl import Problem, parse_domain, parse_problem
from envs.alfworld.planning import Planner, constants_of
from envs.alfworld.relations import Fact, Relations, Row, Schema
from envs.alfworld.rules import CompiledAction, Rules, compile_rules, type_facts
from envs.alfworld.text_compiler import RenderContext
from envs.base import EnvError

NOTHING_HAPPENS = "Nothing happens."
Commands: TypeAlias = dict[str, tuple[CompiledAction, Row]]

_TASK_PLACEHOLDER = "\ue000"
_MOST_OFFERS = 1024
_MOST_RULES = 64
_RULES: dict[tuple[str, str], Rules] = {}  # by the texts of domain and grammar
_parse_domain = lru_cache(maxsize=16)(parse_domain)
_TASK = re.compile(r'("task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*)("(?:[^"\\]|\\.)*")')


class Game:
    """A problem with its rules: names, initial facts, goal. Build it with `compile_game`."""

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
        # caches: the command of a ground action, and all commands of an action in a state
        self.typed: dict[tuple[str, Any] | None, str] = {}
        self.offers: dict[tuple[str, tuple[Fact, ...]], Commands] = {}

    def play(self) -> Play:
        """A new episode."""
        return Play(self)


class Play:
    """One episode: `feedback`, `admissible` (sorted commands) and `won` after each `step`."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.state = game.start.copy()
        self._context = RenderContext(self.state, game.attributes)
        self.feedback = game.rules.intro.render((), self._context).replace(_TASK_PLACEHOLDER, game.task)
        self._refresh()

    def step(self, command: str) -> bool:
        """Plays a command and returns whether it was admissible; an inadmissible one changes nothing."""
        chosen = self._commands.get(command.strip())
        if chosen is None:
            self.feedback = NOTHING_HAPPENS
            return False
        action, arguments = chosen
        action.apply(self.game.constants + arguments, self.state)
        self.feedback = action.feedback.render(arguments, self._context)
        self._refresh()
        return True

    def _refresh(self) -> None:
        commands: Commands = {}
        for action in reversed(self.game.rules.actions):
            commands.update(self._offer(action))
        self._commands = commands
        self.admissible = tuple(sorted(commands))
        self.won = any(query.rows(self.game.goal_constants, self.state) for query in self.game.goal)

    def _offer(self, action: CompiledAction) -> Commands:
        """The commands that an action admits in the present state."""
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
            key = None if action.typed_by is None else (action.name, action.typed_by(arguments))
            text = self.game.typed.get(key)
            if text is None:
                text = action.template.render(arguments, self._context)
                if key is not None:
                    self.game.typed[key] = text
            commands.setdefault(text, (action, arguments))
        return commands


def split_task(grammar_text: str) -> tuple[str, str]:
    """The grammar with a placeholder for the task's sentence, and that sentence.

    Grammars of different games differ in this sentence only, so their compiled rules can be shared.
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
    before, after = grammar_text[: match.start(2)], grammar_text[match.end(2) :]
    return before + json.dumps(_TASK_PLACEHOLDER) + after, symbols[0]


def compile_game(domain_text: str, grammar_text: str, problem_text: str) -> Game:
    """Parses a game's three texts; rules are compiled once for each pair of domain and grammar."""
    domain = _parse_domain(domain_text)
    problem = parse_problem(problem_text)
    objects = {**domain.constants, **problem.objects}
    names = sorted(objects)
    numbers = {name: i for i, name in enumerate(names)}
    facts: dict[str, list[Fact]] = type_facts(objects, numbers, domain)
    for predicate, arguments in dict.fromkeys(problem.facts):
        undeclared = next((name for name in arguments if name not in numbers), None)
        if undeclared is not None:
            raise EnvError(f"PDDL problem: object {undeclared!r} is used but not declared")
        facts.setdefault(predicate, []).append(tuple(numbers[name] for name in arguments))
    shared, task = split_task(grammar_text)
    key = (domain_text, shared)
    if key not in _RULES:
        if len(_RULES) == _MOST_RULES:
            _RULES.clear()
        _RULES[key] = compile_rules(domain, shared, facts)
    return Game(_RULES[key], problem, names, facts, task)


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """The name of each object in the game's text: `desk 1`; ids in order get descending numbers."""
    stems: dict[str, str] = {}
    for name in sorted(ids):
        stem, bar, _ = name.partition("_bar_")
        stems[name] = stem + "basin" if bar and "basin" in name else stem
    left = Counter(stem for name, stem in stems.items() if "_bar_" in name)
    titles: dict[str, str] = {}
    for name, stem in stems.items():
        if "_bar_" in name:
            titles[name] = f"{stem} {left[stem]}"
            left[stem] -= 1
        else:
            titles[name] = f"{stem} "
    return titles
