"""The Sokoban part of bench_envs.py: random moves in the reference's rooms, 6 x 6 with one box.

Rooms are made first (`resets_per_second_new`, each from its seed), then met again as in training, where a
group plays one room. gym-sokoban plays rooms of the same shape where it is importable (pip install --no-deps
gym-sokoban gym gym_notices imageio); it makes a room in every reset and shows the smallest picture it has, a
pixel a cell. Times are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.util import find_spec
from random import Random
from statistics import median
from typing import Any

from envs.base import Task
from envs.sokoban import SokobanEnvironment, SokobanTasks
from envs.sokoban.rooms import MOVES, room_of
from tools import bench_envs

EPISODE, ORIGINAL_ROOMS = 15, 30


def bench(rooms: int, repeats: int, seed: int) -> dict[str, Any]:
    """Times resets and steps over `rooms` rooms, `repeats` times; with gym-sokoban the same of it."""
    tasks = SokobanTasks(train=rooms, seed=seed).tasks("train")
    room_of.cache_clear()
    environment = SokobanEnvironment(max_steps=EPISODE)
    new = [bench_envs._seconds(lambda task=task: environment.reset(task)) for task in tasks]
    runs = [_walk(environment, tasks, Random(f"{seed}/{i}")) for i in range(repeats)]
    return {
        "env": "sokoban",
        "commit": bench_envs._commit(),
        "device": f"{platform.machine()}, one core of {bench_envs._cores()}",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "numpy": bench_envs._version("numpy")},
        "rooms": rooms,
        "repeats": repeats,  # medians of them
        "steps": runs[0][2],
        "steps_per_second": round(median(steps / seconds for _, seconds, steps in runs)),
        "resets_per_second": round(median(rooms / seconds for seconds, _, _ in runs)),
        "resets_per_second_new": round(rooms / sum(new)),
        "reset_new_ms": bench_envs._milliseconds(new),
        "memory_kib_per_environment": bench_envs.memory_per_environment(_started(tasks)),
        "original": _original(seed),
    }


def _started(tasks: list[Task]) -> Callable[[int], Any]:
    def start(place: int) -> SokobanEnvironment:
        environment = SokobanEnvironment(max_steps=EPISODE)
        environment.reset(tasks[place % len(tasks)])
        environment.step("up")
        return environment

    return start


def _walk(environment: SokobanEnvironment, tasks: list[Task], rng: Random) -> tuple[float, float, int]:
    """Seconds of the resets, seconds of the steps, and how many those were."""
    resets = steps = 0.0
    count = 0
    for task in tasks:
        moves = rng.choices(list(MOVES), k=EPISODE)
        start = time.process_time()
        environment.reset(task)
        middle = time.process_time()
        for move in moves:
            count += 1
            if environment.step(move).done:
                break
        resets += middle - start
        steps += time.process_time() - middle
    return resets, steps, count


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
        resets.append(bench_envs._seconds(lambda: environment.reset(render_mode="tiny_rgb_array")))
        start, count, done = time.process_time(), 0, False
        while not done and count < EPISODE:
            _, _, done, _ = environment.step(rng.randrange(1, 5), observation_mode="tiny_rgb_array")
            count += 1
        rates.append(count / (time.process_time() - start))
    return {
        "versions": {name: bench_envs._version(name) for name in ("gym-sokoban", "gym")},
        "rooms": ORIGINAL_ROOMS,
        "steps_per_second": round(median(rates)),
        "resets_per_second": round(len(resets) / sum(resets), 1),
        "reset_ms": bench_envs._milliseconds(resets),
    }


def main(options: argparse.Namespace) -> None:
    """Measures as bench_envs was asked to, and prints."""
    result = bench(options.rooms, options.repeats, options.seed)
    print(f"ours      {result['steps_per_second']:>10,} steps/s  {result['resets_per_second']:>8,} resets/s, "
          f"{result['resets_per_second_new']:,} of new rooms")  # fmt: skip
    original = result["original"]
    if isinstance(original, dict):
        speed, resets = original["steps_per_second"], original["resets_per_second"]
        print(f"original  {speed:>10,} steps/s  {resets:>8,} resets/s")
    else:
        print(f"original  {original}")
    if options.json:
        print(json.dumps(result))
