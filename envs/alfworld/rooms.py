"""Furnished rooms: a floor plan's real surfaces, and places for the ones its layout leaves out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from envs.alfworld.wheel import FloorPlan, Pose, Wheel

_STANDING_ON_COUNTER = {
    "CoffeeMachine": 1,
    "Microwave": 1,
    "StoveBurner": 4,
    "Toaster": 1,
}  # how many a room has
_HANGING = {"HandTowelHolder", "TowelHolder", "ToiletPaperHanger"}
_COUNTERS = ("CounterTop", "DiningTable", "SideTable", "Desk", "Dresser")
_COUNTER_HEIGHT, _HANGING_HEIGHT, _REACH, _GRID = 0.9, 1.4, 0.6, 0.25  # metres


@dataclass(frozen=True, slots=True)
class Surface:
    """A receptacle of the room: its id as AI2-THOR writes it, its type, and where one stands to use it."""

    id: str
    kind: str
    pose: Pose
    openable: bool

    @property
    def position(self) -> tuple[float, float, float]:
        """x, y, z in metres, read from the id."""
        x, y, z = (float(part) for part in self.id.split("|")[1:4])
        return x, y, z


def kind_of(surface_id: str) -> str:
    """The receptacle type of an id: the basin where it is part of a sink or bathtub."""
    parts = surface_id.split("|")
    return parts[-1] if len(parts) > 4 else parts[0]


def furnish(plan: FloorPlan, wheel: Wheel, rng: Random) -> list[Surface]:
    """All receptacles of a floor plan.

    The layout's own keep their positions. Those that the plan lists without a position are placed where such
    things are: burners and machines on a counter, holders on a wall, the rest on the floor along the wall.
    """
    real = [
        (name + "|BathtubBasin" if name.startswith("Bathtub|") and name.count("|") == 3 else name, pose)
        for name, pose in plan.surfaces
    ]
    surfaces = [
        Surface(name, kind_of(name), pose, kind_of(name) in wheel.openable)
        for name, pose in real
        if kind_of(name) in wheel.holds
    ]
    counters = [surface for surface in surfaces if surface.kind in _COUNTERS]
    present = {surface.kind for surface in surfaces}
    free = _free_points(plan, surfaces)
    for kind in plan.kinds:
        if kind not in wheel.holds or kind in present:
            continue
        for _ in range(_STANDING_ON_COUNTER.get(kind, 1)):
            if not free:
                break
            on = rng.choice(counters) if counters and kind in _STANDING_ON_COUNTER else None
            surfaces.append(_placed(kind, on, free, wheel, rng))
    return surfaces


def numeral(value: float) -> str:
    """A coordinate as AI2-THOR ids write it: `+01.25`."""
    return f"{value:+06.2f}"


def _free_points(plan: FloorPlan, surfaces: list[Surface]) -> list[tuple[float, float]]:
    taken = {(surface.pose.x, surface.pose.z) for surface in surfaces}
    return [point for point in plan.standing if point not in taken]


def _placed(
    kind: str, on: Surface | None, free: list[tuple[float, float]], wheel: Wheel, rng: Random
) -> Surface:
    """A surface of `kind` on a counter or along a wall; its standing point is taken out of `free`."""
    if on is not None:
        x, y, z = on.position
        x, z = x + rng.uniform(-0.3, 0.3), z + rng.uniform(-0.3, 0.3)
        y = max(y, _COUNTER_HEIGHT)
        point = min(free, key=lambda p: math.dist(p, (x, z)))
    else:
        point, (dx, dz) = _by_the_wall(free, rng)
        x, z = point[0] + dx * _REACH, point[1] + dz * _REACH
        y = _HANGING_HEIGHT if kind in _HANGING else 0.0
    free.remove(point)
    suffix = {"SinkBasin": "Sink", "BathtubBasin": "Bathtub"}.get(kind)
    name = f"{suffix or kind}|{numeral(x)}|{numeral(y)}|{numeral(z)}" + (f"|{kind}" if suffix else "")
    return Surface(name, kind, Pose(*point, _towards(point, (x, z)), _tilt(y)), kind in wheel.openable)


def _by_the_wall(free: list[tuple[float, float]], rng: Random) -> tuple[tuple[float, float], tuple[int, int]]:
    """A point with a blocked neighbour, and the direction of that neighbour."""
    known = set(free)
    edges = [
        (point, (dx, dz))
        for point in free
        for dx, dz in ((0, 1), (1, 0), (0, -1), (-1, 0))
        if (point[0] + dx * _GRID, point[1] + dz * _GRID) not in known
    ]
    return rng.choice(edges)


def _towards(point: tuple[float, float], target: tuple[float, float]) -> int:
    """The quarter turn (degrees clockwise from +z) that faces the target best."""
    dx, dz = target[0] - point[0], target[1] - point[1]
    return round(math.degrees(math.atan2(dx, dz)) / 90) % 4 * 90


def _tilt(height: float) -> int:
    """Degrees to look down (a multiple of 15) at something that high."""
    return 60 if height < 0.3 else 45 if height < 1.1 else 0 if height < 1.8 else -30
