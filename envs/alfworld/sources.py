"""The task source of a run: a folder of games, which the generator can fill on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from envs.alfworld.games import AlfworldTasks
from envs.files import new_folder
from envs.registry import check_options


def task_source(
    data: str | None = None, task_types: Sequence[str] = (), generate: Mapping[str, Any] | None = None
) -> AlfworldTasks:
    """The games under `data` (default: $ALFWORLD_DATA), generated on first use if `generate` is given.

    `generate` holds `games` (split -> number) and optionally `seed`, `receptacles` and `objects` (limits of
    the rooms); an existing folder is used unchanged. Raises EnvError for unknown or missing keys.
    """
    source = AlfworldTasks(data, task_types)
    if generate is not None and data is not None and not source.root.exists():
        made = partial(_generate_all, source.root, source.task_types)
        check_options(made, generate, "environment.tasks.generate", "alfworld")
        made(**generate)
    return source


def _generate_all(
    data: Path,
    task_types: Sequence[str],
    games: Mapping[str, int],  # split -> number
    seed: int = 0,
    receptacles: int | None = None,
    objects: int | None = None,
) -> None:
    # the generator is also a program (python -m), which must not be imported before it runs
    from envs.alfworld.generate import generate
    from envs.alfworld.scenes import RoomLimits

    limits = RoomLimits(receptacles, objects)
    with (
        new_folder(data) as folder,
        tqdm(total=sum(games.values()), unit="game", desc="games", leave=False, disable=None) as bar,
    ):
        for split, count in games.items():
            for _ in generate(folder, split, count, seed, task_types, limits):
                bar.update()
