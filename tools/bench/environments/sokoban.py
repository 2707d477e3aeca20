"""Random moves in Sokoban rooms of the shape that the reference uses, 6 x 6 with one box.

Each room is first made from its seed (`resets_per_second_new`) and then played again, as in training, where
a group plays one room. gym-sokoban plays rooms of the same shape if it is importable (pip install --no-deps
gym-sokoban gym gym_notices imageio); it makes a room in every reset, and draws its smallest picture, one
pixel per cell.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from importlib.util import find_spec
from random import Random
from statistics import median
from typing import Any

from envs.base import Task
from envs.sokoban import SokobanEnvironment, SokobanTasks
from envs.sokoban.rooms import MOVES, room_of
from gigpo_mega.telemetry.provenance import provenance, versions
from tools.bench.environments.measure import memory_per_environment, milliseconds, play, seconds

EPISODE, ORIGINAL_ROOMS = 15, 30


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Time resets and steps over `rooms` rooms, `repeats` times, and gym-sokoban if it is installed."""
    rooms, seed = options.rooms, options.seed
    tasks = SokobanTasks(train=rooms, seed=seed).tasks("train")
    room_of.cache_clear()
    environment = SokobanEnvironment(max_steps=EPISODE)
    new = [seconds(lambda task=task: environment.reset(task)) for task in tasks]
    rng = Random(seed)
    episodes = [(task, rng.choices(list(MOVES), k=EPISODE)) for task in tasks]
    runs = [play(environment, episodes) for _ in range(options.repeats)]
    return {
        "env": "sokoban",
        **provenance("numpy"),
        "rooms": rooms,
        "repeats": options.repeats,  # medians of them
        "steps": sum(runs[0].counts),
        "steps_per_second": round(median(run.steps_per_second for run in runs)),
        "resets_per_second": round(median(run.resets_per_second for run in runs)),
        "resets_per_second_new": round(rooms / sum(new)),
        "reset_new_ms": milliseconds(new),
        "memory_kib_per_environment": memory_per_environment(lambda i: _started(tasks[i % len(tasks)])),
        "original": _original(seed),
    }


def _started(task: Task) -> SokobanEnvironment:
    environment = SokobanEnvironment(max_steps=EPISODE)
    environment.reset(task)
    environment.step("up")
    return environment


def _original(seed: int) -> dict[str, Any] | str:
    if find_spec("gym_sokoban") is None:
        return "not installed here: pip install --no-deps gym-sokoban gym gym_notices imageio"
    import numpy as np
    from gym_sokoban.envs.sokoban_env import SokobanEnv  # pyright: ignore[reportMissingImports]

    np.random.seed(seed)
    rng = Random(seed)
    environment: Any = SokobanEnv(
        dim_room=(6, 6), max_steps=EPISODE, num_boxes=1, num_gen_steps=30, reset=False
    )
    resets: list[float] = []
    rates: list[float] = []
    for _ in range(ORIGINAL_ROOMS):
        resets.append(seconds(lambda: environment.reset(render_mode="tiny_rgb_array")))
        start, count, done = time.process_time(), 0, False
        while not done and count < EPISODE:
            _, _, done, _ = environment.step(rng.randrange(1, 5), observation_mode="tiny_rgb_array")
            count += 1
        rates.append(count / (time.process_time() - start))
    return {
        "versions": versions("gym-sokoban", "gym"),
        "rooms": ORIGINAL_ROOMS,
        "steps_per_second": round(median(rates)),
        "resets_per_second": round(len(resets) / sum(resets), 1),
        "reset_ms": milliseconds(resets),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The result as text."""
    resets, new = result["resets_per_second"], result["resets_per_second_new"]
    yield f"ours      {result['steps_per_second']:>10,} steps/s  {resets:>8,} resets/s, {new:,} of new rooms"
    original = result["original"]
    if isinstance(original, dict):
        speed, resets = original["steps_per_second"], original["resets_per_second"]
        yield f"original  {speed:>10,} steps/s  {resets:>8,} resets/s"
    else:
        yield f"original  {original}"
