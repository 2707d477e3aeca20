"""Makes ALFWorld games: real floor plans, own object placement, each won by the expert before it is kept.

python -m envs.alfworld.generate --output DIR --train 400 --valid-seen 64 --valid-unseen 64
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from envs.alfworld.engine import compile_game
from envs.alfworld.expert import solve
from envs.alfworld.games import GAME_FILE, SPLITS, TASK_TYPES
from envs.alfworld.scenes import Limits, draw
from envs.alfworld.wheel import Wheel, load_wheel
from envs.alfworld.writing import folder_name, game_file, trajectory_file
from envs.base import EnvironmentError

_TRIES = 200
_AS_THEY_ARE = Limits()


def generate(
    output: str | Path,
    split: str,
    games: int,
    seed: int = 0,
    task_types: Sequence[str] = TASK_TYPES,
    limits: Limits = _AS_THEY_ARE,
) -> Iterator[Path]:
    """Writes `games` games of a split under `output`/json_2.1.1 and yields their paths, task types in turn.

    The same arguments give the same bytes. `valid_unseen` uses floor plans that the other splits never use.
    """
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
    wheel: Wheel, split: str, task_type: str, seed: str, limits: Limits = _AS_THEY_ARE
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """One solvable game: its folder's name, the content of game.tw-pddl and of traj_data.json."""
    if task_type not in TASK_TYPES:
        known = ", ".join(TASK_TYPES)
        raise EnvironmentError(f"--task-types: unknown task type {task_type!r}; known: {known}")
    everywhere = wheel.unseen if split == "valid_unseen" else wheel.train
    plans = [plan for plan in everywhere if plan.room in wheel.rooms[task_type]]
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
    raise EnvironmentError(f"no {task_type} game in {_TRIES} draws with {limits}; raise the limits")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Make solvable ALFWorld games in the official folder layout."
    )
    parser.add_argument("--output", required=True, type=Path, help="root folder; use it as environment.data")
    parser.add_argument("--train", type=int, default=0, help="number of games")
    parser.add_argument("--valid-seen", type=int, default=0, help="number of games on the training plans")
    parser.add_argument("--valid-unseen", type=int, default=0, help="number of games on other floor plans")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task-types", nargs="+", default=TASK_TYPES, choices=TASK_TYPES, metavar="TYPE")
    parser.add_argument("--max-receptacles", type=int, help="shrink rooms to this many receptacles")
    parser.add_argument("--max-objects", type=int, help="shrink rooms to this many objects")
    options = parser.parse_args(arguments)
    counts = dict(zip(SPLITS, (options.train, options.valid_seen, options.valid_unseen), strict=True))
    limits = Limits(options.max_receptacles, options.max_objects)
    try:
        with tqdm(total=sum(counts.values()), unit="game", desc="generating", disable=None) as bar:
            for split, games in counts.items():
                for _ in generate(options.output, split, games, options.seed, options.task_types, limits):
                    bar.update()
    except (EnvironmentError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
