"""The receptacles of a floor plan: those of its layout, and positions for those the layout omits."""

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
_COUNTER_HEIGHT, _HANGING_HEIGHT, _REACH, _GRID = 0.9, 1.4, 0.6, 0.25  # meters


@dataclass(frozen=True, slots=True)
class Surface:
    """A receptacle of the room: its AI2-THOR id, its type, and the pose from which it is used."""

    id: str
    kind: str
    pose: Pose
    openable: bool

    @property
    def position(self) -> tuple[float, float, float]:
        """x, y, z in meters, read from the id."""
        x, y, z = (float(part) for part in self.id.split("|")[1:4])
        return x, y, z


def receptacle_type(surface_id: str) -> str:
    """The receptacle type of an id; the basin if it is part of a sink or bathtub."""
    parts = surface_id.split("|")
    return parts[-1] if len(parts) > 4 else parts[0]


def furnish(plan: FloorPlan, wheel: Wheel, rng: Random) -> list[Surface]:
    """All receptacles of a floor plan.

    Those of the layout keep their positions. Those that the plan lists without a position are placed
    plausibly: burners and machines on a counter, holders on a wall, the rest on the floor along a wall.
    """
    real = [
        (name + "|BathtubBasin" if name.startswith("Bathtub|") and name.count("|") == 3 else name, pose)
        for name, pose in plan.surfaces
    ]
    surfaces = [
        Surface(name, kind, pose, kind in wheel.openable)
        for name, pose in real
        if (kind := receptacle_type(name)) in wheel.holds
    ]
    counters = [surface for surface in surfaces if surface.kind in _COUNTERS]
    present = {surface.kind for surface in surfaces}
    taken = {(surface.pose.x, surface.pose.z) for surface in surfaces}
    free = [point for point in plan.standing if point not in taken]
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


def _placed(
    kind: str, on: Surface | None, free: list[tuple[float, float]], wheel: Wheel, rng: Random
) -> Surface:
    """A surface of `kind` on a counter or along a wall; its standing point is removed from `free`."""
    if on is not None:
        x, y, z = on.position
        x, z = x + rng.uniform(-0.3, 0.3), z + rng.uniform(-0.3, 0.3)
        y = max(y, _COUNTER_HEIGHT)
        point = min(free, key=lambda p: math.dist(p, (x, z)))
    else:
        points, turns = set(free), ((0, 1), (1, 0), (0, -1), (-1, 0))
        # a point with a blocked neighbor, and the direction of that neighbor
        point, (dx, dz) = rng.choice([
            (p, (dx, dz))
            for p in free
            for dx, dz in turns
            if (p[0] + dx * _GRID, p[1] + dz * _GRID) not in points
        ])
        x, z = point[0] + dx * _REACH, point[1] + dz * _REACH
        y = _HANGING_HEIGHT if kind in _HANGING else 0.0
    free.remove(point)
    suffix = {"SinkBasin": "Sink", "BathtubBasin": "Bathtub"}.get(kind)
    name = f"{suffix or kind}|{numeral(x)}|{numeral(y)}|{numeral(z)}" + (f"|{kind}" if suffix else "")
    # face the surface in quarter turns (clockwise from +z), and look down by a multiple of 15 degrees
    rotation = round(math.degrees(math.atan2(x - point[0], z - point[1])) / 90) % 4 * 90
    horizon = 60 if y < 0.3 else 45 if y < 1.1 else 0 if y < 1.8 else -30
    return Surface(name, kind, Pose(*point, rotation, horizon), kind in wheel.openable)
