"""An expert that knows the shortest way, by breadth-first search."""

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
    """The fewest moves, at most `limit`, that bring every box onto a target; None where there are none."""
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
    """One expert episode in an environment made with `options`, but for its `max_steps`.

    With probability `detour` it makes another move than the best, one after which it can still be in time.
    """
    environment = SokobanEnvironment(**{**options, "max_steps": max_steps})
    observation, rng = environment.reset(task), Random(f"{seed}/{task.id}")
    turns: list[tuple[Observation, str]] = []
    while True:
        left = max_steps - len(turns)
        way = solve(environment.room, left)
        name = way[0] if way else rng.choice(list(MOVES))
        if way and rng.random() < detour:
            name = rng.choice(_in_time(environment.room, left) or [name])
        turns.append((observation, name))
        transition = environment.step(name)
        observation = transition.observation
        if transition.done:
            return Demonstration(tuple(turns), transition.success)


def _in_time(room: Room, left: int) -> list[str]:
    return [name for name in MOVES if solve(room.moved(name), left - 1) is not None]
