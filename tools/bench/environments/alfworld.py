"""Random walks on generated games of all six types in full-size rooms, with admissible commands.

The official engine plays some of the games if it is importable (tools/check_alfworld.py says how).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any

from envs.alfworld.engine import compile_game
from envs.alfworld.environment import AlfworldEnvironment
from envs.alfworld.games import TASK_TYPES, load_game, read_game
from envs.alfworld.generate import generate
from envs.base import Task
from gigpo_mega.telemetry.provenance import provenance, versions
from tools.bench.environments.measure import memory_per_environment, milliseconds, seconds

OFFICIAL_GAMES, OFFICIAL_STEPS = 3, 10


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Time the native engine on `episodes` walks of `steps` steps per game, and the official engine."""
    steps, seed = options.steps, options.seed
    with tempfile.TemporaryDirectory() as folder:
        paths = list(generate(folder, "train", options.games, seed))
        parses = [seconds(lambda path=path: compile_game(*_texts(path))) for path in paths]
        walks = [_walk(path, steps, f"{seed}/{path}/{i}") for i in range(options.episodes) for path in paths]
        official = _official(paths[:OFFICIAL_GAMES], steps=OFFICIAL_STEPS, seed=seed)
        memory = memory_per_environment(lambda place: _started(paths[place % len(paths)]))
    step_times = [walk for _, walk in walks]
    return {
        "env": "alfworld",
        **provenance(),
        "games": options.games,
        "task_types": len(TASK_TYPES),
        "steps": steps * len(walks),
        "steps_per_second": round(steps * len(walks) / sum(step_times)),  # per CPU second of one core
        "steps_per_second_slowest_decile": round(steps / quantiles(step_times, n=10)[-1]),
        "reset_ms": milliseconds([reset for reset, _ in walks]),
        "resets_per_second": round(len(walks) / sum(reset for reset, _ in walks)),
        "memory_kib_per_environment": memory,
        "parse_ms": milliseconds(parses),
        "official": official,
    }


def _texts(path: Path) -> tuple[str, str, str]:
    data = read_game(path)
    return data["pddl_domain"], data["grammar"], data["pddl_problem"]


def _walk(path: Path, steps: int, seed: str) -> tuple[float, float]:
    """Seconds of the reset, and of a random walk of `steps` steps through the environment."""
    rng, environment = Random(seed), AlfworldEnvironment(max_steps=steps + 1)
    task = Task(path.name, "", str(path))
    load_game(path)
    start = time.process_time()
    admissible = environment.reset(task).admissible
    middle = time.process_time()
    for taken in range(steps):
        transition = environment.step(rng.choice(admissible))
        admissible = transition.observation.admissible
        if transition.done and taken < steps - 1:
            admissible = environment.reset(task).admissible
    return middle - start, time.process_time() - middle


def _official(paths: Sequence[Path], steps: int, seed: int) -> dict[str, Any] | str:
    """The same measurements of the official engine, or why there are none."""
    if find_spec("textworld") is None or find_spec("fast_downward") is None:
        return "not installed here: pip install alfworld==0.4.2 'textworld[pddl]==1.7.0'"
    from tools.oracles.alfworld import OfficialEngine

    engine, resets, times = OfficialEngine(), [], []
    for path in paths:
        rng = Random(f"{seed}/{path}/0")
        start = time.process_time()
        shown = engine.load(path)
        resets.append(time.process_time() - start)
        start = time.process_time()
        for _ in range(steps):
            shown = engine.step(rng.choice(shown["admissible"]))
        times.append(time.process_time() - start)
    return {
        "versions": versions("alfworld", "textworld", "fast-downward-textworld"),
        "steps": steps * len(paths),
        "steps_per_second": round(steps * len(paths) / sum(times), 2),
        "load_and_reset_ms": milliseconds(resets),
    }


def _started(path: Path) -> AlfworldEnvironment:
    environment = AlfworldEnvironment()
    environment.step(environment.reset(Task(path.name, "", str(path))).admissible[0])
    return environment


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The result as text."""
    reset = result["reset_ms"]["median"]
    yield f"native engine    {result['steps_per_second']:>10,} steps/s    reset {reset} ms"
    official = result["official"]
    if isinstance(official, dict):
        reset = official["load_and_reset_ms"]["median"]
        yield f"official engine  {official['steps_per_second']:>10,} steps/s    reset {reset} ms"
    else:
        yield f"official engine  {official}"
