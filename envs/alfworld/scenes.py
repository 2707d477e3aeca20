"""Random scenes: a task, a floor plan (or part of it), and plausibly placed objects."""

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
# The alfworld package does not say where lamps stand; the official rules need them in or on a receptacle.
_LAMPS = {
    "DeskLamp": ("Desk", "SideTable", "Dresser", "DiningTable", "CoffeeTable", "Shelf"),
    "FloorLamp": ("SideTable", "Sofa", "ArmChair", "Desk", "Dresser", "Bed", "CoffeeTable"),
}
_MOST_TARGETS = 3  # objects of the kind to be picked
_COPIES = (1, 1, 2, 3)  # of every other kind, drawn at random


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """Upper bounds on a room's size (None: unlimited); what the task needs is always kept."""

    receptacles: int | None = None
    objects: int | None = None


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What the agent has to do; `receptacle`, `tool` and `lamp` are empty if the task has none."""

    task_type: str
    object: str
    receptacle: str
    tool: str
    lamp: str


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """An object and the receptacle that holds it at the start."""

    id: str
    kind: str
    place: Surface


@dataclass(frozen=True, slots=True)
class Scene:
    """A random game before it is written to files."""

    plan: FloorPlan
    spec: TaskSpec
    surfaces: tuple[Surface, ...]
    objects: tuple[PlacedObject, ...]
    start: Pose
    sentence: str


def draw(wheel: Wheel, plan: FloorPlan, task_type: str, limits: RoomLimits, rng: Random) -> Scene | None:
    """A random scene of this task on this floor plan, or None if the plan lacks what the task needs."""
    room = furnish(plan, wheel, rng)
    portable = [kind for kind in plan.kinds if kind in wheel.objects and kind not in wheel.holds]
    spec = _task_spec(wheel, plan, {surface.kind for surface in room}, portable, task_type, rng)
    if spec is None:
        return None
    surfaces = _shrunk(room, wheel, spec, limits, rng)
    objects = _placed_objects(wheel, surfaces, portable, spec, limits, rng)
    if objects is None:
        return None
    sentence = rng.choice(wheel.goals[task_type].sentences).format(
        obj=spec.object.lower(), recep=spec.receptacle.lower(), toggle=spec.lamp.lower()
    )
    taken = {str(surface.pose) for surface in room}
    poses = [Pose(x, z, rotation, 30) for x, z in plan.standing for rotation in (0, 90, 180, 270)]
    start = rng.choice([pose for pose in poses if str(pose) not in taken])
    return Scene(plan, spec, tuple(surfaces), tuple(objects), start, sentence)


def _task_spec(
    wheel: Wheel, plan: FloorPlan, kinds: set[str], portable: Sequence[str], task_type: str, rng: Random
) -> TaskSpec | None:
    """An object and its target: never the only kind of place where the object can be, nor the tool."""
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
    return TaskSpec(task_type, *rng.choice(options), tool, lamp) if options else None


def _shrunk(
    room: list[Surface], wheel: Wheel, spec: TaskSpec, limits: RoomLimits, rng: Random
) -> list[Surface]:
    """The room within its limit: a source, a target, a tool and a place for the lamp, then anything else."""
    if limits.receptacles is None or len(room) <= limits.receptacles:
        return room
    order = list(room)
    rng.shuffle(order)
    needs: list[Callable[[Surface], bool]] = [
        lambda surface: _is_source(wheel, spec, surface),
        lambda surface: surface.kind == spec.receptacle,
        lambda surface: surface.kind == spec.tool,
        lambda surface: surface.kind in _LAMPS.get(spec.lamp, ()),
    ]
    kept: list[Surface] = []
    for need in needs:
        if not any(map(need, kept)):
            kept += [surface for surface in order if need(surface)][:1]
    rest = [surface for surface in order if surface not in kept]
    kept += rest[: max(0, limits.receptacles - len(kept))]
    return [surface for surface in room if surface in kept]


def _placed_objects(
    wheel: Wheel,
    surfaces: Sequence[Surface],
    portable: Sequence[str],
    spec: TaskSpec,
    limits: RoomLimits,
    rng: Random,
) -> list[PlacedObject] | None:
    """Objects in their places: the lamp, those to be picked up (none at the target), then the rest."""
    objects: list[PlacedObject] = []
    most = limits.objects if limits.objects is not None else 1_000

    def place(kind: str, places: Sequence[Surface]) -> bool:
        if places:
            objects.append(_placed_object(kind, rng.choice(places), objects, rng))
        return bool(places)

    if spec.lamp and not place(spec.lamp, [s for s in surfaces if s.kind in _LAMPS[spec.lamp]]):
        return None
    fewest = 2 if spec.task_type == "pick_two_obj_and_place" else 1
    copies = rng.randint(fewest, max(fewest, min(_MOST_TARGETS, most - len(objects))))
    sources = [surface for surface in surfaces if _is_source(wheel, spec, surface)]
    if not all(place(spec.object, sources) for _ in range(copies)):
        return None
    kinds = [kind for kind in portable if kind != spec.object and kind not in wheel.actions["Toggleable"]]
    others = [kind for kind in kinds for _ in range(rng.choice(_COPIES))]
    rng.shuffle(others)
    for kind in others:
        if len(objects) >= most:
            break
        place(kind, [surface for surface in surfaces if kind in wheel.holds[surface.kind]])
    return objects


def _is_source(wheel: Wheel, spec: TaskSpec, surface: Surface) -> bool:
    return surface.kind != spec.receptacle and spec.object in wheel.holds[surface.kind]


def _placed_object(kind: str, place: Surface, others: Sequence[PlacedObject], rng: Random) -> PlacedObject:
    x, y, z = place.position
    taken = {other.id for other in others}
    while True:
        spot = (x + rng.uniform(-0.3, 0.3), y + rng.uniform(0.0, 0.1), z + rng.uniform(-0.3, 0.3))
        name = "|".join((kind, *map(numeral, spot)))
        if name not in taken:
            return PlacedObject(name, kind, place)
