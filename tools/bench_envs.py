"""Measure text environments: steps per second on one core, resets, first parse; peers in the same run.

    python tools/bench_envs.py --env alfworld --json        # the last line is one JSON object
    python tools/bench_envs.py --env webshop --json         # tools/{webshop,sokoban,search}_speed.py say
                                                            # what is measured

ALFWorld: random walks on generated games of all six types in full-size rooms, admissible commands included
after every step; the official engine runs the same where it is importable (see tools/check_alfworld.py).
Times are CPU seconds of this process, so that another program on the machine does not count.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from envs.alfworld.engine import compile_game  # noqa: E402
from envs.alfworld.environment import AlfworldEnvironment  # noqa: E402
from envs.alfworld.games import TASK_TYPES, load_game, read_game  # noqa: E402
from envs.alfworld.generate import generate  # noqa: E402
from envs.base import EnvironmentError, Task  # noqa: E402

OFFICIAL_GAMES, OFFICIAL_STEPS = 3, 10
HELD = 200  # environments whose memory is taken


def bench_alfworld(games: int, episodes: int, steps: int, seed: int) -> dict[str, Any]:
    """Times the native engine on `episodes` walks of `steps` steps in each game, and the official one."""
    with tempfile.TemporaryDirectory() as folder:
        paths = list(generate(folder, "train", games, seed))
        parses = [_seconds(lambda path=path: compile_game(*_texts(path))) for path in paths]
        walks = [_walk(path, steps, f"{seed}/{path}/{i}") for i in range(episodes) for path in paths]
        official = _official(paths[:OFFICIAL_GAMES], steps=OFFICIAL_STEPS, seed=seed)
        memory = memory_per_environment(lambda place: _started(paths[place % len(paths)]))
    step_times = [seconds for _, seconds in walks]
    return {
        "env": "alfworld",
        "commit": _commit(),
        "device": f"{platform.machine()}, one core of {_cores()}",
        "versions": {"python": platform.python_version()},
        "games": games,
        "task_types": len(TASK_TYPES),
        "steps": steps * len(walks),
        "steps_per_second": round(steps * len(walks) / sum(step_times)),  # per CPU second of one core
        "steps_per_second_slowest_decile": round(steps / quantiles(step_times, n=10)[-1]),
        "reset_ms": _milliseconds([seconds for seconds, _ in walks]),
        "resets_per_second": round(len(walks) / sum(seconds for seconds, _ in walks)),
        "memory_kib_per_environment": memory,
        "parse_ms": _milliseconds(parses),
        "official": official,
    }


def _texts(path: Path) -> tuple[str, str, str]:
    data = read_game(path)
    return data["pddl_domain"], data["grammar"], data["pddl_problem"]


def _walk(path: Path, steps: int, seed: str) -> tuple[float, float]:
    """Seconds for the reset and for a random walk of `steps` steps through the environment."""
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
    from tools.check_alfworld import OfficialEngine

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
        "versions": {name: _version(name) for name in ("alfworld", "textworld", "fast-downward-textworld")},
        "steps": steps * len(paths),
        "steps_per_second": round(steps * len(paths) / sum(times), 2),
        "load_and_reset_ms": _milliseconds(resets),
    }


def _started(path: Path) -> AlfworldEnvironment:
    environment = AlfworldEnvironment()
    environment.step(environment.reset(Task(path.name, "", str(path))).admissible[0])
    return environment


def memory_per_environment(start: Callable[[int], object]) -> float:
    """KiB that an environment in the middle of an episode holds beside what all in its process share."""
    start(0)  # what is shared is loaded once
    gc.collect()
    tracemalloc.start()
    held = [start(place) for place in range(HELD)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(taken / len(held) / 1024, 1)


def _seconds(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    tenths = quantiles(seconds, n=10) if len(seconds) > 1 else [seconds[0]] * 9
    return {"median": round(1e3 * median(seconds), 3), "p90": round(1e3 * tenths[-1], 3)}


def _cores() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else "unknown"


def _commit() -> str:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return git.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def main() -> None:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--env", choices=["alfworld", "search", "sokoban", "webshop"], default="alfworld")
    parser.add_argument("--games", type=int, default=30, help="generated games, all task types in turn")
    parser.add_argument("--episodes", type=int, default=4, help="walks on each game")
    parser.add_argument("--steps", type=int, default=50, help="steps of a walk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rooms", type=int, default=500, help="of Sokoban")
    parser.add_argument("--repeats", type=int, default=5, help="of Sokoban and search; medians are told")
    parser.add_argument("--products", type=int, default=5000, help="of the generated shop")
    parser.add_argument("--original", type=Path, metavar="DIR", help="checkout of WebShop")
    options = parser.parse_args()
    if options.env != "alfworld":
        return importlib.import_module(f"tools.{options.env}_speed").main(options)
    try:
        result = bench_alfworld(options.games, options.episodes, options.steps, options.seed)
    except EnvironmentError as error:
        sys.exit(f"error: {error}")
    official = result["official"]
    reset = result["reset_ms"]["median"]
    print(f"native engine    {result['steps_per_second']:>10,} steps/s    reset {reset} ms")
    if isinstance(official, dict):
        reset = official["load_and_reset_ms"]["median"]
        print(f"official engine  {official['steps_per_second']:>10,} steps/s    reset {reset} ms")
    else:
        print(f"official engine  {official}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
