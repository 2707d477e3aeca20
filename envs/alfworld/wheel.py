"""The data of the `alfworld` wheel: its files are read and its literals parsed; none of its code is imported.

It is installed without its dependencies (`pip install --no-deps alfworld==0.4.2`, MIT) and supplies the PDDL
domain, the grammar, goal templates, containment tables and the layouts of the AI2-THOR floor plans.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from envs.base import EnvError


@dataclass(frozen=True, slots=True)
class GoalTemplate:
    """A task type's PDDL goal, with `{obj}`, `{recep}` and `{toggle}` to fill in, and its sentences."""

    pddl: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the agent stands to use something: meters, degrees clockwise from +z, degrees downward."""

    x: float
    z: float
    rotation: int
    horizon: int

    def __str__(self) -> str:
        return f"loc|{round(self.x * 4)}|{round(self.z * 4)}|{self.rotation // 90 % 4}|{self.horizon}"


@dataclass(frozen=True, slots=True)
class FloorPlan:
    """One AI2-THOR room: its kinds of objects, its receptacles, the points where the agent can stand."""

    number: int
    room: str  # Kitchen, LivingRoom, Bedroom, Bathroom
    kinds: tuple[str, ...]
    surfaces: tuple[tuple[str, Pose], ...]  # (id such as "Cabinet|+00.68|+00.50|-02.20", pose to use it)
    standing: tuple[tuple[float, float], ...]  # reachable grid points (x, z)

    @classmethod
    def read(cls, layouts: Path, number: int, room: str) -> FloorPlan:
        """The floor plan in the wheel's folder of layouts."""
        kinds = json.loads((layouts / f"FloorPlan{number}-objects.json").read_text(encoding="utf-8"))
        surfaces = json.loads((layouts / f"FloorPlan{number}-openable.json").read_text(encoding="utf-8"))
        points = np.load(layouts / f"FloorPlan{number}-layout.npy", allow_pickle=False)
        return cls(
            number,
            room,
            tuple(sorted(kinds)),
            tuple(
                (name, Pose(x, z, int(turn), int(tilt)))
                for name, (x, z, turn, tilt) in sorted(surfaces.items())
            ),
            tuple(sorted((float(x), float(z)) for x, z in points)),
        )


@dataclass(frozen=True, slots=True)
class Wheel:
    """The tables that games are generated from, all read from the wheel's files."""

    domain: str
    grammar: str
    goals: dict[str, GoalTemplate]
    rooms: dict[str, frozenset[str]]  # task type -> rooms it can happen in
    holds: dict[str, frozenset[str]]  # receptacle type -> object types it can hold
    actions: dict[str, frozenset[str]]  # Heatable, Coolable, Cleanable, Sliceable -> object types
    objects: frozenset[str]
    movable: frozenset[str]  # receptacles that are objects themselves: bowls, boxes, ...
    openable: frozenset[str]
    train: tuple[FloorPlan, ...]
    unseen: tuple[FloorPlan, ...]


@lru_cache(maxsize=1)
def load_wheel() -> Wheel:
    """Reads the installed wheel; raises EnvError with the command that installs it."""
    spec = find_spec("alfworld")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise EnvError(
            "the alfworld package, whose floor plans games are made of, is not installed: "
            "pip install --no-deps alfworld==0.4.2"
        )
    root = Path(places[0])
    try:
        return _read(root)
    except (OSError, KeyError, SyntaxError, ValueError) as error:
        raise EnvError(
            f"{root}: cannot read the alfworld package ({type(error).__name__}: {error}); "
            "pip install --no-deps --force-reinstall alfworld==0.4.2"
        ) from None


def _read(root: Path) -> Wheel:
    tables = dict(_literals((root / "gen" / "constants.py").read_text(encoding="utf-8")))
    goals = dict(_literals((root / "gen" / "goal_library.py").read_text(encoding="utf-8")))
    room_of = {number: room for room, numbers in tables["SCENE_TYPE"].items() for number in numbers}
    layouts = root / "gen" / "layouts"

    def plans(name: str) -> tuple[FloorPlan, ...]:
        return tuple(FloorPlan.read(layouts, number, room_of[number]) for number in tables[name])

    movable = frozenset(tables["MOVABLE_RECEPTACLES"])
    holds = dict(tables["VAL_RECEPTACLE_OBJECTS"])
    table_top = holds.pop("TableTop")  # the wheel's name for all kinds of tables
    holds.update(dict.fromkeys(("DiningTable", "CoffeeTable", "SideTable"), table_top))
    return Wheel(
        domain=(root / "data" / "alfred.pddl").read_text(encoding="utf-8"),
        grammar=(root / "data" / "alfred.twl2").read_text(encoding="utf-8"),
        goals={
            n: GoalTemplate(g["pddl"].replace("#", "-"), tuple(g["templates"]))
            for n, g in goals.items()
            if "pddl" in g
        },
        rooms={name: frozenset(rooms) for name, rooms in tables["GOALS_VALID"].items()},
        holds={name: frozenset(kinds) for name, kinds in holds.items() if name not in movable},
        actions={name: frozenset(kinds) for name, kinds in tables["VAL_ACTION_OBJECTS"].items()},
        objects=frozenset(tables["OBJECTS"]) | movable,
        movable=movable,
        openable=frozenset(tables["OPENABLE_CLASS_LIST"]) - movable,
        train=plans("TRAIN_SCENE_NUMBERS"),
        unseen=plans("TEST_SCENE_NUMBERS"),
    )


class _Ranges(ast.NodeTransformer):
    """`range(a, b)` and `list(...)` as list literals, so that literal_eval can read them."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        arguments = [self.visit(argument) for argument in node.args]
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called == "range":
            numbers = range(*[ast.literal_eval(argument) for argument in arguments])
            return ast.List([ast.Constant(number) for number in numbers], ast.Load())
        return arguments[0] if called == "list" and arguments else node


def _literals(source: str) -> Iterator[tuple[str, Any]]:
    """The module-level `name = literal`, `t["name"] = literal` and `name.extend(literal)` of a source."""
    lists: dict[str, list[Any]] = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=str(name)))], value=value):
                pass
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="extend"), args=[value])
            ):
                pass
            case _:
                continue
        try:
            literal = ast.literal_eval(_Ranges().visit(value))
        except ValueError:  # computed from other names: not one of the tables we need
            continue
        if isinstance(node, ast.Expr):
            lists.get(name, []).extend(literal)
            continue
        if isinstance(literal, list):
            lists[name] = literal
        yield name, literal
