"""A drawn scene as the two files of an official game folder: game.tw-pddl and traj_data.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from envs.alfworld.scenes import Scene
from envs.alfworld.wheel import Wheel

_PROPERTIES = {
    "Heatable": "heatable",
    "Coolable": "coolable",
    "Cleanable": "cleanable",
    "Sliceable": "sliceable",
}
_MENTIONED_BY_DOMAIN = ("SinkBasin", "Microwave", "Fridge", "Knife", "ButterKnife")
_ESCAPES = str.maketrans({"|": "_bar_", "-": "_minus_", "+": "_plus_", ".": "_dot_", ",": "_comma_"})


def folder_name(scene: Scene) -> str:
    """`<task type>-<object>-<movable>-<receptacle>-<floor plan>`, as the official folders are called."""
    errand = scene.errand
    return f"{errand.task_type}-{errand.object}-None-{errand.receptacle or errand.lamp}-{scene.plan.number}"


def game_file(wheel: Wheel, scene: Scene) -> dict[str, Any]:
    """The content of game.tw-pddl but for `solvable` and `walkthrough`."""
    errand = scene.errand
    goal = wheel.goals[errand.task_type].pddl.format(
        obj=errand.object, recep=errand.receptacle, toggle=errand.lamp
    )
    head = f"(define (problem plan_{errand.task_type}_{scene.plan.number})"
    lines = [head, "(:domain alfred)", "(:objects", *_objects(wheel, scene), ")", "(:init"]
    lines += [*_facts(wheel, scene), ")"]
    return {
        "pddl_domain": wheel.domain,
        "grammar": wheel.grammar.replace("UNKNOWN GOAL", scene.sentence),
        "pddl_problem": "\n".join(lines) + goal,
    }


def trajectory_file(scene: Scene) -> dict[str, Any]:
    """What the official environment and its expert read of traj_data.json."""
    errand = scene.errand
    return {
        "task_type": errand.task_type,
        "pddl_params": {
            "object_target": errand.object,
            "parent_target": errand.receptacle,
            "toggle_target": errand.lamp,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{scene.plan.number}", "scene_num": scene.plan.number},
        "turk_annotations": {"anns": [{"task_desc": scene.sentence}]},
    }


def _objects(wheel: Wheel, scene: Scene) -> Iterator[str]:
    surface_kinds = {surface.kind for surface in scene.surfaces} | {scene.errand.receptacle} - {""}
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
        properties = [word for action, word in _PROPERTIES.items() if thing.kind in wheel.actions[action]]
        yield from (f" ({word} {name})" for word in properties)
        if thing.kind in wheel.movable:
            yield f" (isReceptacleObject {name})"
    yield f" (atLocation agent1 {_escaped(str(scene.start))})"


def _escaped(name: str) -> str:
    return name.translate(_ESCAPES)
