"""Random scenes: a task, a floor plan (or part of it), and objects in sensible places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from envs.alfworld.rooms import Surface, furnish, numeral
from envs.alfworld.wheel import FloorPlan, Pose, Wheel

_TOOLS = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
# The wheel does not say where lamps stand; the official rules need them in or on a receptacle.
_LAMPS = {
    "DeskLamp": ("Desk", "SideTable", "Dresser", "DiningTable", "CoffeeTable", "Shelf"),
    "FloorLamp": ("SideTable", "Sofa", "ArmChair", "Desk", "Dresser", "Bed", "CoffeeTable"),
}
_MOST_TARGETS = 3  # objects of the kind to be picked
_COPIES = (1, 1, 2, 3)  # of every other kind, drawn at random


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on a room's size, None for as it is; what the task needs is kept in any case."""

    receptacles: int | None = None
    objects: int | None = None


@dataclass(frozen=True, slots=True)
class Errand:
    """What the agent is to do; `receptacle`, `tool` and `lamp` are empty where the task has none."""

    task_type: str
    object: str
    receptacle: str
    tool: str
    lamp: str


@dataclass(frozen=True, slots=True)
class Thing:
    """An object and the receptacle it is in or on at the start."""

    id: str
    kind: str
    place: Surface


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn game before it is written down."""

    plan: FloorPlan
    errand: Errand
    surfaces: tuple[Surface, ...]
    things: tuple[Thing, ...]
    start: Pose
    sentence: str


def draw(wheel: Wheel, plan: FloorPlan, task_type: str, limits: Limits, rng: Random) -> Scene | None:
    """A random scene of this task on this floor plan, or None where the plan lacks what the task needs."""
    room = furnish(plan, wheel, rng)
    portable = [kind for kind in plan.kinds if kind in wheel.objects and kind not in wheel.holds]
    errand = _errand(wheel, plan, {surface.kind for surface in room}, portable, task_type, rng)
    if errand is None:
        return None
    surfaces = _shrunk(room, wheel, errand, limits, rng)
    things = _things(wheel, surfaces, portable, errand, limits, rng)
    if things is None:
        return None
    sentence = rng.choice(wheel.goals[task_type].sentences).format(
        obj=errand.object.lower(), recep=errand.receptacle.lower(), toggle=errand.lamp.lower()
    )
    return Scene(plan, errand, tuple(surfaces), tuple(things), _start(plan, room, rng), sentence)


def _errand(
    wheel: Wheel, plan: FloorPlan, kinds: set[str], portable: Sequence[str], task_type: str, rng: Random
) -> Errand | None:
    """An object, and where to bring it: never to the only kind of place it can come from, nor to the tool."""
    action, tool = _TOOLS.get(task_type, ("", ""))
    lamp = ""
    if task_type == "look_at_obj_in_light":
        lamps = [kind for kind, places in _LAMPS.items() if kind in plan.kinds and kinds & set(places)]
        if not lamps:
            return None
        lamp = rng.choice(lamps)
    if tool and tool not in kinds:
        return None
    options: list[tuple[str, str]] = []
    for kind in portable:
        if kind in wheel.actions["Toggleable"] or (action and kind not in wheel.actions[action]):
            continue
        homes = {place for place in kinds if kind in wheel.holds[place]}
        targets = [""] if lamp else sorted(homes - {tool})
        options += [(kind, target) for target in targets if homes - {target}]
    return Errand(task_type, *rng.choice(options), tool, lamp) if options else None


def _shrunk(room: list[Surface], wheel: Wheel, errand: Errand, limits: Limits, rng: Random) -> list[Surface]:
    """The room, or as much as the limit allows: a source, a target, a tool, a lamp's place, then anything."""
    if limits.receptacles is None or len(room) <= limits.receptacles:
        return room
    order = list(room)
    rng.shuffle(order)
    needs: list[Callable[[Surface], bool]] = [
        lambda surface: _is_source(wheel, errand, surface),
        lambda surface: surface.kind == errand.receptacle,
        lambda surface: surface.kind == errand.tool,
        lambda surface: surface.kind in _LAMPS.get(errand.lamp, ()),
    ]
    kept: list[Surface] = []
    for need in needs:
        if not any(map(need, kept)):
            kept += [surface for surface in order if need(surface)][:1]
    rest = [surface for surface in order if surface not in kept]
    kept += rest[: max(0, limits.receptacles - len(kept))]
    return [surface for surface in room if surface in kept]


def _things(
    wheel: Wheel,
    surfaces: Sequence[Surface],
    portable: Sequence[str],
    errand: Errand,
    limits: Limits,
    rng: Random,
) -> list[Thing] | None:
    """Objects in their places: the lamp, those to be picked (none at the target yet), then the rest."""
    things: list[Thing] = []
    most = limits.objects if limits.objects is not None else 1_000

    def place(kind: str, places: Sequence[Surface]) -> bool:
        if places:
            things.append(_thing(kind, rng.choice(places), things, rng))
        return bool(places)

    if errand.lamp and not place(errand.lamp, [s for s in surfaces if s.kind in _LAMPS[errand.lamp]]):
        return None
    fewest = 2 if errand.task_type == "pick_two_obj_and_place" else 1
    copies = rng.randint(fewest, max(fewest, min(_MOST_TARGETS, most - len(things))))
    sources = [surface for surface in surfaces if _is_source(wheel, errand, surface)]
    if not all(place(errand.object, sources) for _ in range(copies)):
        return None
    kinds = [kind for kind in portable if kind != errand.object and kind not in wheel.actions["Toggleable"]]
    others = [kind for kind in kinds for _ in range(rng.choice(_COPIES))]
    rng.shuffle(others)
    for kind in others:
        if len(things) >= most:
            break
        place(kind, [surface for surface in surfaces if kind in wheel.holds[surface.kind]])
    return things


def _is_source(wheel: Wheel, errand: Errand, surface: Surface) -> bool:
    return surface.kind != errand.receptacle and errand.object in wheel.holds[surface.kind]


def _thing(kind: str, place: Surface, others: Sequence[Thing], rng: Random) -> Thing:
    x, y, z = place.position
    taken = {other.id for other in others}
    while True:
        spot = (x + rng.uniform(-0.3, 0.3), y + rng.uniform(0.0, 0.1), z + rng.uniform(-0.3, 0.3))
        name = "|".join((kind, *map(numeral, spot)))
        if name not in taken:
            return Thing(name, kind, place)


def _start(plan: FloorPlan, room: Sequence[Surface], rng: Random) -> Pose:
    """Somewhere one can stand, at no receptacle's pose."""
    taken = {str(surface.pose) for surface in room}
    poses = [Pose(x, z, turn, 30) for x, z in plan.standing for turn in (0, 90, 180, 270)]
    return rng.choice([pose for pose in poses if str(pose) not in taken])
