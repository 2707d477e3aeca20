"""A scene as the two files of an official game folder: game.tw-pddl and traj_data.json."""

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
    """`<task type>-<object>-<movable>-<receptacle>-<floor plan>`, as in the official data."""
    spec = scene.spec
    return f"{spec.task_type}-{spec.object}-None-{spec.receptacle or spec.lamp}-{scene.plan.number}"


def game_file(wheel: Wheel, scene: Scene) -> dict[str, Any]:
    """The content of game.tw-pddl except `solvable` and `walkthrough`."""
    spec = scene.spec
    goal = wheel.goals[spec.task_type].pddl.format(
        obj=spec.object, recep=spec.receptacle, toggle=spec.lamp
    )
    surface_kinds = {surface.kind for surface in scene.surfaces} | {spec.receptacle} - {""}
    object_kinds = {item.kind for item in scene.objects}
    poses = {str(surface.pose) for surface in scene.surfaces} | {str(scene.start)}
    lines = [
        f"(define (problem plan_{spec.task_type}_{scene.plan.number})",
        "(:domain alfred)",
        "(:objects",
        " agent1 - agent",
        *(
            f" {kind}Type - {'rtype' if kind in wheel.holds else 'otype'}"
            for kind in sorted(surface_kinds | object_kinds | set(_MENTIONED_BY_DOMAIN))
        ),
        *(f" {_escaped(item.id)} - object" for item in scene.objects),
        *(f" {_escaped(surface.id)} - receptacle" for surface in scene.surfaces),
        *(f" {_escaped(pose)} - location" for pose in sorted(poses)),
        ")",
        "(:init",
        *_facts(wheel, scene),
        ")",
    ]
    return {
        "pddl_domain": wheel.domain,
        "grammar": wheel.grammar.replace("UNKNOWN GOAL", scene.sentence),
        "pddl_problem": "\n".join(lines) + goal,
    }


def trajectory_file(scene: Scene) -> dict[str, Any]:
    """The fields of traj_data.json that the official environment and its expert read."""
    spec = scene.spec
    return {
        "task_type": spec.task_type,
        "pddl_params": {
            "object_target": spec.object,
            "parent_target": spec.receptacle,
            "toggle_target": spec.lamp,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{scene.plan.number}", "scene_num": scene.plan.number},
        "turk_annotations": {"anns": [{"task_desc": scene.sentence}]},
    }


def _facts(wheel: Wheel, scene: Scene) -> Iterator[str]:
    kinds = sorted({item.kind for item in scene.objects})
    for kind in sorted({surface.kind for surface in scene.surfaces}):
        yield from (f" (canContain {kind}Type {held}Type)" for held in kinds if held in wheel.holds[kind])
    for surface in scene.surfaces:
        name = _escaped(surface.id)
        yield f" (receptacleType {name} {surface.kind}Type)"
        yield f" (receptacleAtLocation {name} {_escaped(str(surface.pose))})"
        if surface.openable:
            yield f" (openable {name})"
    for item in scene.objects:
        name = _escaped(item.id)
        yield f" (objectType {name} {item.kind}Type)"
        yield f" (inReceptacle {name} {_escaped(item.place.id)})"
        yield f" (objectAtLocation {name} {_escaped(str(item.place.pose))})"
        yield f" ({'toggleable' if item.kind in wheel.actions['Toggleable'] else 'pickupable'} {name})"
        properties = [word for action, word in _PROPERTIES.items() if item.kind in wheel.actions[action]]
        yield from (f" ({word} {name})" for word in properties)
        if item.kind in wheel.movable:
            yield f" (isReceptacleObject {name})"
    yield f" (atLocation agent1 {_escaped(str(scene.start))})"


def _escaped(name: str) -> str:
    return name.translate(_ESCAPES)
