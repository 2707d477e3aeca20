"""A scripted expert that solves the six task types, either all-knowing or exploring, to be imitated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any

from envs.alfworld.engine import Game, Play
from envs.alfworld.environment import AlfworldEnvironment
from envs.alfworld.pddl import Conjunct
from envs.base import Demonstration, EnvError, Observation, Task

_CHANGES = {"isclean": ("clean", "sinkbasin"), "ishot": ("heat", "microwave"), "iscool": ("cool", "fridge")}
_IDLE = ("look", "inventory", "examine ", "go to ", "open ", "close ")


@dataclass(frozen=True, slots=True)
class TaskGoal:
    """A game's goal, read from its PDDL text; kinds are lower-case as in the game's text."""

    object: str
    count: int = 1
    receptacle: str = ""  # empty: hold the object near a lamp that is on
    change: str = ""  # clean, heat or cool
    tool: str = ""
    lamp: str = ""


def read_goal(game: Game) -> TaskGoal:
    """The goal of a game of one of the six types; raises EnvError for any other."""
    if len(game.problem.goal) != 1:
        raise EnvError("expert: a goal with alternatives is not one of the six task types")
    literals = game.problem.goal[0].literals
    kinds = _kinds(game.problem.goal[0], "objecttype")
    targets = _kinds(game.problem.goal[0], "receptacletype")
    predicates = {literal.predicate for literal in literals}
    if predicates & {"issliced", "inreceptacleobject"} or not kinds:
        raise EnvError("expert: sliced and movable-receptacle goals are not among the six task types")
    if "holds" in predicates:
        held = next(literal.arguments[1] for literal in literals if literal.predicate == "holds")
        lit = next((literal.arguments[0] for literal in literals if literal.predicate == "istoggled"), held)
        return TaskGoal(object=kinds[held], lamp=kinds[lit])
    change, tool = next((_CHANGES[name] for name in sorted(predicates) if name in _CHANGES), ("", ""))
    return TaskGoal(next(iter(kinds.values())), len(kinds), next(iter(targets.values())), change, tool)


class Expert:
    """Plays one episode.

    With `explore` it acts on what it has observed: it searches likely receptacles, opening closed ones, until
    it has seen what it needs. It visits them in the order of their names, starting from its place, so that a
    policy with a short memory can do the same. Without `explore` it knows where everything is. At every step,
    with probability `detour`, it plays an admissible command that does not help.
    """

    def __init__(self, play: Play, rng: Random, detour: float = 0.0, explore: bool = False) -> None:
        self.play, self.rng, self.detour = play, rng, detour
        game = play.game
        self.goal = read_goal(game)
        facts = game.problem.facts
        titles, kinds = game.titles, dict(_pairs(facts, "objecttype") + _pairs(facts, "receptacletype"))
        self.kind = {titles[name]: kind.removesuffix("type") for name, kind in kinds.items()}
        self.receptacles = sorted(titles[name] for name, _ in _pairs(facts, "receptacletype"))
        self.openable = {titles[arguments[0]] for predicate, arguments in facts if predicate == "openable"}
        self.inside = {titles[name]: titles[place] for name, place in _pairs(facts, "inreceptacle")}
        self.fits = {(a.removesuffix("type"), b.removesuffix("type")) for a, b in _pairs(facts, "cancontain")}
        self.seen: set[str] = set() if explore else set(self.receptacles)
        self.held = self.place = ""
        self.changed: set[str] = set()
        self.target = self._receptacle(self.goal.receptacle)

    def command(self) -> str:
        """The next command; the expert assumes that it is played."""
        if self.detour > 0 and self.rng.random() < self.detour:
            command = self.rng.choice([name for name in self.play.admissible if name.startswith(_IDLE)])
        else:
            command = self._purposeful()
        if command not in self.play.admissible:
            command = "look"
        self.observe(command)
        return command

    def _purposeful(self) -> str:
        goal = self.goal
        if not self.held:
            wanted = self._shown(goal.object)
            if not wanted:
                return self._search(goal.object)
            place = self.inside[wanted]
            return self._reach(place) or self._opened(place) or f"take {wanted} from {place}"
        held = self.kind[self.held]
        if held != goal.object:  # put it down: here, or in a receptacle that holds it, open ones last
            here = _first(name for name in self.play.admissible if name.startswith(f"move {self.held} to "))
            fitting = [n for n in self.receptacles if n != self.target and (self.kind[n], held) in self.fits]
            place = _first(name for name in fitting if self._opened(name)) or _first(fitting)
            return here or self._reach(place) or self._opened(place) or "look"
        if goal.lamp:
            lamp = self._shown(goal.lamp)
            return (self._reach(self.inside[lamp]) or f"use {lamp}") if lamp else self._search(goal.lamp)
        if goal.change and self.held not in self.changed:
            tool = self._receptacle(goal.tool)
            return self._reach(tool) or f"{goal.change} {self.held} with {tool}"
        return self._reach(self.target) or self._opened(self.target) or f"move {self.held} to {self.target}"

    def _receptacle(self, kind: str) -> str:
        return _first(name for name in self.receptacles if self.kind[name] == kind)

    def _shown(self, kind: str) -> str:
        """An object of this kind that has been seen and still has to be used."""
        for name, place in self.inside.items():
            finished = place == self.target and (not self.goal.change or name in self.changed)
            if self.kind.get(name) == kind and place in self.seen and not finished:
                return name
        return ""

    def _search(self, kind: str) -> str:
        """Looks into the next receptacle: the one in front of the agent first, then likely ones."""
        unseen = [name for name in self.receptacles if name not in self.seen]
        if not unseen:
            return "look"
        anywhere = kind.endswith("lamp")  # lamps are never moved, so the game does not list where they fit
        likely = [n for n in unseen if anywhere or (self.kind[n], kind) in self.fits] or unseen
        following = _first(name for name in likely if name > self.place) or likely[0]
        place = _first(name for name in likely if self._at(name)) or following
        return self._reach(place) or self._opened(place) or f"examine {place}"

    def _at(self, place: str) -> bool:
        return f"examine {place}" in self.play.admissible

    def _reach(self, place: str) -> str:
        return "" if self._at(place) else f"go to {place}"

    def _opened(self, place: str) -> str:
        return f"open {place}" if f"open {place}" in self.play.admissible else ""

    def observe(self, command: str) -> None:
        """Records the effects of an admissible command that is about to be played, whoever chose it."""
        verb, _, rest = command.partition(" ")
        if verb == "take":
            self.held, _, _ = rest.partition(" from ")
            self.inside.pop(self.held, None)
        elif verb == "move":
            name, _, place = rest.partition(" to ")
            self.inside[name], self.held = place, ""
        elif verb in ("heat", "cool", "clean"):
            self.changed.add(rest.partition(" with ")[0])
        elif verb == "open" or (verb == "examine" and f"open {rest}" not in self.play.admissible):
            self.seen.add(rest)
        elif verb == "go":
            self.place = rest.removeprefix("to ")
            if self.place not in self.openable:
                self.seen.add(self.place)


def demonstrate(
    task: Task,
    seed: int,
    detour: float = 0.0,
    max_steps: int = 50,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Demonstration:
    """One episode of the exploring expert: each observation with the command after it, and the success.

    The environment is made with `options`, with `max_steps` replaced.
    """
    environment = AlfworldEnvironment(**{**options, "max_steps": max_steps})
    observation = environment.reset(task)
    expert = Expert(environment.play, Random(f"{seed}/{task.id}"), detour, explore=True)
    turns: list[tuple[Observation, str]] = []
    while True:
        command = expert.command()
        turns.append((observation, command))
        transition = environment.step(command)
        observation = transition.observation
        if transition.done:
            return Demonstration(tuple(turns), transition.success)


def solve(game: Game, max_steps: int = 100) -> list[str]:
    """The commands with which the all-knowing expert wins; empty if it does not."""
    play = game.play()
    expert = Expert(play, Random(0))
    commands: list[str] = []
    while not play.won and len(commands) < max_steps:
        commands.append(expert.command())
        play.step(commands[-1])
    return commands if play.won else []


def _first(names: Iterable[str]) -> str:
    return next(iter(names), "")


def _kinds(goal: Conjunct, predicate: str) -> dict[str, str]:
    """variable -> kind, from the goal's type literals."""
    return {
        literal.arguments[0]: literal.arguments[1].removesuffix("type")
        for literal in goal.literals
        if literal.predicate == predicate
    }


def _pairs(facts: Iterable[tuple[str, tuple[str, ...]]], predicate: str) -> list[tuple[str, str]]:
    return [(arguments[0], arguments[1]) for name, arguments in facts if name == predicate]
