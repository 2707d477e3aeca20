"""Generates ALFWorld games on real floor plans with random object placement; the expert wins each of them.

python -m envs.alfworld.generate --output DIR --train 400 --valid-seen 64 --valid-unseen 64
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from envs.alfworld.engine import compile_game
from envs.alfworld.expert import solve
from envs.alfworld.games import GAME_FILE, SPLITS, TASK_TYPES
from envs.alfworld.scenes import RoomLimits, draw
from envs.alfworld.wheel import Wheel, load_wheel
from envs.alfworld.writing import folder_name, game_file, trajectory_file
from envs.base import EnvError
from envs.program import run

_TRIES = 200
_UNLIMITED = RoomLimits()


def generate(
    output: str | Path,
    split: str,
    games: int,
    seed: int = 0,
    task_types: Sequence[str] = TASK_TYPES,
    limits: RoomLimits = _UNLIMITED,
) -> Iterator[Path]:
    """Writes `games` games of a split under `output`/json_2.1.1 and yields their paths.

    Task types take turns. The same arguments give the same bytes. `valid_unseen` uses floor plans that the
    other splits never use. Raises EnvError for an unknown split.
    """
    if split not in SPLITS:
        raise EnvError(f"environment.tasks.generate.games: no split {split!r}; known: {', '.join(SPLITS)}")
    wheel = load_wheel()
    for i in range(games):
        task_type = task_types[i % len(task_types)]
        name, game, trajectory = make_game(wheel, split, task_type, f"{seed}/{split}/{i}", limits)
        trial = f"trial_T20260101_{seed:06d}_{i:06d}"
        folder = Path(output) / "json_2.1.1" / split / name / trial
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traj_data.json").write_text(json.dumps(trajectory), encoding="utf-8")
        (folder / GAME_FILE).write_text(json.dumps(game), encoding="utf-8")
        yield folder / GAME_FILE


def make_game(
    wheel: Wheel, split: str, task_type: str, seed: str, limits: RoomLimits = _UNLIMITED
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """One solvable game: its folder's name, the content of game.tw-pddl and of traj_data.json."""
    if task_type not in TASK_TYPES:
        known = ", ".join(TASK_TYPES)
        raise EnvError(f"--task-types: unknown task type {task_type!r}; known: {known}")
    every_plan = wheel.unseen if split == "valid_unseen" else wheel.train
    plans = [plan for plan in every_plan if plan.room in wheel.rooms[task_type]]
    for attempt in range(_TRIES):
        rng = Random(f"{seed}/{task_type}/{attempt}")
        scene = draw(wheel, rng.choice(plans), task_type, limits, rng)
        if scene is None:
            continue
        game = game_file(wheel, scene)
        walkthrough = solve(compile_game(game["pddl_domain"], game["grammar"], game["pddl_problem"]))
        if walkthrough:
            game.update(solvable=True, walkthrough=walkthrough)
            return folder_name(scene), game, trajectory_file(scene)
    raise EnvError(f"no {task_type} game in {_TRIES} draws with {limits}; raise the limits")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; raises EnvError for numbers of games that make none."""
    parser = argparse.ArgumentParser(
        description="Make solvable ALFWorld games in the official folder layout."
    )
    parser.add_argument("--output", required=True, type=Path, help="root folder, for environment.tasks.data")
    parser.add_argument("--train", type=int, default=0, help="number of games")
    parser.add_argument("--valid-seen", type=int, default=0, help="number of games on the training plans")
    parser.add_argument("--valid-unseen", type=int, default=0, help="number of games on other floor plans")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task-types", nargs="+", default=TASK_TYPES, choices=TASK_TYPES, metavar="TYPE")
    parser.add_argument("--max-receptacles", type=int, help="shrink rooms to this many receptacles")
    parser.add_argument("--max-objects", type=int, help="shrink rooms to this many objects")
    options = parser.parse_args(arguments)
    counts = dict(zip(SPLITS, (options.train, options.valid_seen, options.valid_unseen), strict=True))
    limits = RoomLimits(options.max_receptacles, options.max_objects)
    for split, games in counts.items():
        if games < 0:
            raise EnvError(f"--{split.replace('_', '-')}: {games} is below 0; give a number of games")
    if not any(counts.values()):
        raise EnvError("no games are asked for; give --train, --valid-seen or --valid-unseen")
    with tqdm(total=sum(counts.values()), unit="game", desc="generating", disable=None) as bar:
        for split, games in counts.items():
            for _ in generate(options.output, split, games, options.seed, options.task_types, limits):
                bar.update()


if __name__ == "__main__":
    run(main)
