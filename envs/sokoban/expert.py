"""An expert that plays the shortest solution, found by breadth-first search."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import Any

from envs.base import Demonstration, Observation, Task
from envs.sokoban.environment import SokobanEnvironment
from envs.sokoban.rooms import MOVES, Room


def solve(room: Room, limit: int = 100) -> tuple[str, ...] | None:
    """The fewest moves, at most `limit`, that bring every box onto a target; None if there are none."""
    ways: dict[Room, tuple[str, ...]] = {room: ()}
    waiting = deque([room])
    while waiting:
        seen = waiting.popleft()
        if seen.solved:
            return ways[seen]
        for name in MOVES if len(ways[seen]) < limit else ():
            if (after := seen.moved(name)) not in ways:
                ways[after] = (*ways[seen], name)
                waiting.append(after)
    return None


def demonstrate(
    task: Task,
    seed: int,
    detour: float = 0.0,
    max_steps: int = 15,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Demonstration:
    """One expert episode in an environment made with `options`, with `max_steps` replaced.

    With probability `detour` it makes a random move after which the room can still be solved in time.
    """
    environment = SokobanEnvironment(**{**options, "max_steps": max_steps})
    observation, rng = environment.reset(task), Random(f"{seed}/{task.id}")
    turns: list[tuple[Observation, str]] = []
    while True:
        left = max_steps - len(turns)
        way = solve(environment.room, left)
        name = way[0] if way else rng.choice(list(MOVES))
        if way and rng.random() < detour:
            room = environment.room
            in_time = [move for move in MOVES if solve(room.moved(move), left - 1) is not None]
            name = rng.choice(in_time or [name])
        turns.append((observation, name))
        transition = environment.step(name)
        observation = transition.observation
        if transition.done:
            return Demonstration(tuple(turns), transition.success)
