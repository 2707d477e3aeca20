"""Makes ALFWorld games: real floor plans, own object placement, every game won by the expert before it is kept.

python -m envs.alfworld.generate --output DIR --train 400 --valid-seen 64 --valid-unseen 64
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from envs.alfworld.engine import compile_game
from envs.alfworld.expert import solve
from envs.alfworld.games import GAME_FILE, SPLITS, TASK_TYPES, AlfworldTasks
from envs.alfworld.rooms import Surface, furnish, numeral
from envs.alfworld.wheel import FloorPlan, Pose, Wheel, load_wheel
from envs.base import EnvironmentError

_TRIES = 200
_TOOLS = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
_PROPERTIES = {"Heatable": "heatable", "Coolable": "coolable", "Cleanable": "cleanable", "Sliceable": "sliceable"}
_LAMPS = {
    "DeskLamp": ("Desk", "SideTable", "Dresser", "DiningTable", "CoffeeTable", "Shelf"),
    "FloorLamp": ("SideTable", "Sofa", "ArmChair", "Desk", "Dresser", "Bed", "CoffeeTable"),
}
_MENTIONED_BY_DOMAIN = ("SinkBasin", "Microwave", "Fridge", "Knife", "ButterKnife")
_ESCAPES = str.maketrans({"|": "_bar_", "-": "_minus_", "+": "_plus_", ".": "_dot_", ",": "_comma_"})


@dataclass(frozen=True, slots=True)
class Thing:
    """An object and the receptacle it is in or on at the start."""

    id: str
    kind: str
    place: Surface


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn game before it is written down."""

    task_type: str
    plan: FloorPlan
    object: str
    receptacle: str  # empty for look_at_obj_in_light
    lamp: str  # empty for the others
    surfaces: tuple[Surface, ...]
    things: tuple[Thing, ...]
    start: Pose
    sentence: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on a room's size; what the task needs is kept in any case. None leaves the room as it is."""

    receptacles: int | None = None
    objects: int | None = None


def generate(
    output: str | Path,
    split: str,
    games: int,
    seed: int = 0,
    task_types: Sequence[str] = TASK_TYPES,
    limits: Limits = Limits(),  # noqa: B008  frozen
) -> Iterator[Path]:
    """Writes `games` games of a split under `output`/json_2.1.1 and yields their paths, task types in turn.

    The same arguments give the same bytes. `valid_unseen` uses floor plans that the other two splits never use.
    """
    wheel = load_wheel()
    for i in range(games):
        task_type = task_types[i % len(task_types)]
        name, game, trajectory = make_game(wheel, split, task_type, f"{seed}/{split}/{i}", limits)
        folder = Path(output) / "json_2.1.1" / split / name / f"trial_T20260101_{seed:06d}_{i:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traj_data.json").write_text(json.dumps(trajectory), encoding="utf-8")
        (folder / GAME_FILE).write_text(json.dumps(game), encoding="utf-8")
        yield folder / GAME_FILE


def make_game(
    wheel: Wheel, split: str, task_type: str, seed: str, limits: Limits = Limits()  # noqa: B008  frozen
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """One solvable game: its folder's name, the content of game.tw-pddl and of traj_data.json."""
    if task_type not in wheel.goals or task_type not in TASK_TYPES:
        raise EnvironmentError(f"--task-types: unknown task type {task_type!r}; known: {', '.join(TASK_TYPES)}")
    plans = [plan for plan in (wheel.unseen if split == "valid_unseen" else wheel.train)
             if plan.room in wheel.rooms[task_type]]
    for attempt in range(_TRIES):
        rng = Random(f"{seed}/{task_type}/{attempt}")
        scene = _draw(wheel, rng.choice(plans), task_type, limits, rng)
        if scene is None:
            continue
        game = _game(wheel, scene)
        walkthrough = solve(compile_game(game["pddl_domain"], game["grammar"], game["pddl_problem"]))
        if walkthrough:
            game.update(solvable=True, walkthrough=walkthrough)
            target = scene.receptacle or scene.lamp
            return f"{task_type}-{scene.object}-None-{target}-{scene.plan.number}", game, _trajectory(scene)
    raise EnvironmentError(f"no {task_type} game in {_TRIES} draws with {limits}; raise the limits")


def _draw(wheel: Wheel, plan: FloorPlan, task_type: str, limits: Limits, rng: Random) -> Scene | None:
    """A random scene of this task on this floor plan, or None where the plan lacks what it needs."""
    room = furnish(plan, wheel, rng)
    kinds = {surface.kind for surface in room}
    action, tool = _TOOLS.get(task_type, ("", ""))
    homes = {k: {s for s in kinds if k in wheel.holds[s]} for k in plan.kinds if k in wheel.objects and k not in wheel.holds}
    picks = [k for k in sorted(homes) if (not action or k in wheel.actions[action]) and k not in wheel.actions["Toggleable"]]
    lamp = receptacle = ""
    if task_type == "look_at_obj_in_light":
        lamps = [k for k, places in _LAMPS.items() if k in plan.kinds and kinds & set(places)]
        lamp = rng.choice(lamps) if lamps else ""
    if tool and tool not in kinds or task_type == "look_at_obj_in_light" and not lamp:
        return None
    options = [(k, r) for k in picks for r in (sorted(homes[k] - {tool}) if not lamp else ("",)) if homes[k] - {r}]
    if not options:
        return None
    kind, receptacle = rng.choice(options)
    surfaces = _shrunk(room, wheel, kind, receptacle, tool, lamp, limits, rng)
    things = _things(wheel, surfaces, sorted(homes), kind, receptacle, lamp, task_type, limits, rng)
    if things is None:
        return None
    sentence = rng.choice(wheel.goals[task_type].sentences)
    filled = sentence.format(obj=kind.lower(), recep=receptacle.lower(), toggle=lamp.lower())
    start = _start(plan, room, rng)
    return Scene(task_type, plan, kind, receptacle, lamp, tuple(surfaces), tuple(things), start, filled)


def _shrunk(
    room: list[Surface], wheel: Wheel, kind: str, receptacle: str, tool: str, lamp: str, limits: Limits, rng: Random
) -> list[Surface]:
    """The room, or as much of it as the limit allows: a source, a target, a tool, a lamp's place, then anything."""
    if limits.receptacles is None or len(room) <= limits.receptacles:
        return room
    order = list(room)
    rng.shuffle(order)
    needs = [
        lambda s: s.kind != receptacle and kind in wheel.holds[s.kind],
        lambda s: s.kind == receptacle,
        lambda s: s.kind == tool,
        lambda s: s.kind in _LAMPS.get(lamp, ()),
    ]
    kept: list[Surface] = []
    for need in needs:
        if not any(need(surface) for surface in kept):
            kept.extend([surface for surface in order if need(surface)][:1])
    rest = [surface for surface in order if surface not in kept]
    chosen = [*kept, *rest[: max(0, limits.receptacles - len(kept))]]
    return [surface for surface in room if surface in chosen]


def _things(
    wheel: Wheel,
    surfaces: Sequence[Surface],
    kinds: Sequence[str],
    kind: str,
    receptacle: str,
    lamp: str,
    task_type: str,
    limits: Limits,
    rng: Random,
) -> list[Thing] | None:
    """Objects in their places: the lamp, those to be picked (never in the target yet), then everything else."""
    things: list[Thing] = []

    def place(what: str, places: Sequence[Surface]) -> bool:
        if places:
            things.append(_thing(what, rng.choice(places), things, rng))
        return bool(places)

    if lamp and not place(lamp, [s for s in surfaces if s.kind in _LAMPS[lamp]]):
        return None
    sources = [s for s in surfaces if s.kind != receptacle and kind in wheel.holds[s.kind]]
    fewest = 2 if task_type == "pick_two_obj_and_place" else 1
    room_for = 3 if limits.objects is None else max(fewest, min(3, limits.objects - len(things)))
    if not all(place(kind, sources) for _ in range(rng.randint(fewest, room_for))):
        return None
    others = [k for k in kinds if k != kind and k not in wheel.actions["Toggleable"] for _ in range(rng.choice((1, 1, 2, 3)))]
    rng.shuffle(others)
    for other in others:
        if limits.objects is not None and len(things) >= limits.objects:
            break
        place(other, [s for s in surfaces if other in wheel.holds[s.kind]])
    return things


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


def _game(wheel: Wheel, scene: Scene) -> dict[str, Any]:
    goal = wheel.goals[scene.task_type].pddl.format(obj=scene.object, recep=scene.receptacle, toggle=scene.lamp)
    name = f"plan_{scene.task_type}_{scene.plan.number}"
    lines = [f"(define (problem {name})", "(:domain alfred)", "(:objects", *_objects(wheel, scene), ")", "(:init"]
    lines += [*_facts(wheel, scene), ")"]
    return {
        "pddl_domain": wheel.domain,
        "grammar": wheel.grammar.replace("UNKNOWN GOAL", scene.sentence),
        "pddl_problem": "\n".join(lines) + goal,
    }


def _objects(wheel: Wheel, scene: Scene) -> Iterator[str]:
    surface_kinds = {surface.kind for surface in scene.surfaces} | {scene.receptacle} - {""}
    thing_kinds = {thing.kind for thing in scene.things}
    poses = {str(surface.pose) for surface in scene.surfaces} | {str(scene.start)}
    yield " agent1 - agent"
    for kind in sorted(surface_kinds | thing_kinds | set(_MENTIONED_BY_DOMAIN)):
        yield f" {kind}Type - {'rtype' if kind in wheel.holds else 'otype'}"
    yield from (f" {_escaped(thing.id)} - object" for thing in scene.things)
    yield from (f" {_escaped(surface.id)} - receptacle" for surface in scene.surfaces)
    yield from (f" {_escaped(pose)} - location" for pose in sorted(poses))


def _facts(wheel: Wheel, scene: Scene) -> Iterator[str]:
    kinds = sorted({thing.kind for thing in scene.things})
    for kind in sorted({surface.kind for surface in scene.surfaces}):
        yield from (f" (canContain {kind}Type {held}Type)" for held in kinds if held in wheel.holds[kind])
    for surface in scene.surfaces:
        name = _escaped(surface.id)
        yield f" (receptacleType {name} {surface.kind}Type)"
        yield f" (receptacleAtLocation {name} {_escaped(str(surface.pose))})"
        if surface.openable:
            yield f" (openable {name})"
    for thing in scene.things:
        name = _escaped(thing.id)
        yield f" (objectType {name} {thing.kind}Type)"
        yield f" (inReceptacle {name} {_escaped(thing.place.id)})"
        yield f" (objectAtLocation {name} {_escaped(str(thing.place.pose))})"
        yield f" ({'toggleable' if thing.kind in wheel.actions['Toggleable'] else 'pickupable'} {name})"
        yield from (f" ({word} {name})" for action, word in _PROPERTIES.items() if thing.kind in wheel.actions[action])
        if thing.kind in wheel.movable:
            yield f" (isReceptacleObject {name})"
    yield f" (atLocation agent1 {_escaped(str(scene.start))})"


def _trajectory(scene: Scene) -> dict[str, Any]:
    """What the official environment and the expert's users read of traj_data.json."""
    return {
        "task_type": scene.task_type,
        "pddl_params": {
            "object_target": scene.object,
            "parent_target": scene.receptacle,
            "toggle_target": scene.lamp,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{scene.plan.number}", "scene_num": scene.plan.number},
        "turk_annotations": {"anns": [{"task_desc": scene.sentence}]},
    }


def _escaped(name: str) -> str:
    return name.translate(_ESCAPES)


def task_source(
    data: str | None = None, task_types: Sequence[str] = (), generate: Mapping[str, Any] | None = None
) -> AlfworldTasks:
    """The games under `data` (default: $ALFWORLD_DATA), generated on first use where `generate` says how.

    `generate` holds `games` (split -> number) and optionally `seed`, `receptacles` and `objects` (see `Limits`);
    a folder that exists is taken as it is. Raises EnvironmentError for anything else.
    """
    if generate is not None and data is not None and not Path(data).exists():
        _generate_all(Path(data), tuple(task_types) or TASK_TYPES, generate)
    return AlfworldTasks(data, task_types)


def _generate_all(data: Path, task_types: Sequence[str], how: Mapping[str, Any]) -> None:
    """All splits of `how`, into a folder that appears when it is complete."""
    unknown = sorted(set(how) - {"games", "seed", "receptacles", "objects"})
    if unknown or "games" not in how:
        raise EnvironmentError(
            f"environment.tasks.generate: unknown or missing keys {unknown or ['games']}; "
            "known: games (split -> number), seed, receptacles, objects"
        )
    limits = Limits(how.get("receptacles"), how.get("objects"))
    partial = data.with_name(data.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tqdm(total=sum(how["games"].values()), unit="game", desc="games", leave=False) as bar:
        for split, count in how["games"].items():
            for _ in generate(partial, split, count, how.get("seed", 0), task_types, limits):
                bar.update()
    os.replace(partial, data)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make solvable ALFWorld games in the official folder layout.")
    parser.add_argument("--output", required=True, type=Path, help="root folder; use it as environment.data")
    parser.add_argument("--train", type=int, default=0, help="number of games")
    parser.add_argument("--valid-seen", type=int, default=0, help="number of games on the training floor plans")
    parser.add_argument("--valid-unseen", type=int, default=0, help="number of games on other floor plans")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task-types", nargs="+", default=list(TASK_TYPES), choices=TASK_TYPES, metavar="TYPE")
    parser.add_argument("--max-receptacles", type=int, help="shrink rooms to this many receptacles")
    parser.add_argument("--max-objects", type=int, help="shrink rooms to this many objects")
    options = parser.parse_args(arguments)
    counts = dict(zip(SPLITS, (options.train, options.valid_seen, options.valid_unseen), strict=True))
    limits = Limits(options.max_receptacles, options.max_objects)
    try:
        with tqdm(total=sum(counts.values()), unit="game", desc="generating") as bar:
            for split, games in counts.items():
                for _ in generate(options.output, split, games, options.seed, options.task_types, limits):
                    bar.update()
    except (EnvironmentError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
