"""Game files on disk, in the official folder layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.alfworld.engine import Game, compile_game
from envs.base import EnvError, Task
from envs.files import expanded, read_json

SPLITS = ("train", "valid_seen", "valid_unseen")
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
GAME_FILE = "game.tw-pddl"

_GET_GAMES = "make games with `python -m envs.alfworld.generate --output DIR` or run `alfworld-download`"


def read_game(path: str | Path) -> dict[str, Any]:
    """The JSON object in a game file; raises EnvError with the file and the remedy."""
    again = "it is truncated or damaged: generate or download it again"
    data = read_json(Path(path), _GET_GAMES, again)
    keys = ("pddl_domain", "grammar", "pddl_problem")
    missing = [key for key in keys if not isinstance(data, dict) or not isinstance(data.get(key), str)]
    if missing:
        raise EnvError(
            f"{path}: key {missing[0]!r} is missing or not text; a game.tw-pddl needs {', '.join(keys)}"
        )
    return data


def load_game(path: str | Path) -> Game:
    """The parsed game of a file; recent games are cached, a changed file is read again."""
    try:
        stamp = os.stat(path)
    except OSError as error:
        raise EnvError(
            f"{path}: cannot be read ({error.strerror}); {_GET_GAMES}"
        ) from None
    return _load(str(path), stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=512)
def _load(path: str, modified: int, size: int) -> Game:
    data = read_game(path)
    try:
        return compile_game(data["pddl_domain"], data["grammar"], data["pddl_problem"])
    except (ValueError, LookupError, RecursionError) as error:  # EnvError is a ValueError
        reason = str(error) if isinstance(error, EnvError) else f"cannot be parsed ({error!r})"
        raise EnvError(f"{path}: {reason}; generate or download it again") from None


class AlfworldTasks:
    """The games under `data` (default: $ALFWORLD_DATA), in `json_2.1.1/<split>/...` or `<split>/...`."""

    def __init__(self, data: str | None = None, task_types: Sequence[str] = ()) -> None:
        root = data or os.environ.get("ALFWORLD_DATA", "")
        if not root:
            raise EnvError(
                f"environment.tasks.data: no folder given and ALFWORLD_DATA is not set; {_GET_GAMES}"
            )
        unknown = sorted(set(task_types) - set(TASK_TYPES))
        if unknown:
            known = ", ".join(TASK_TYPES)
            raise EnvError(f"environment.tasks.task_types: unknown type {unknown[0]!r}; known: {known}")
        self.root = Path(expanded(root, "environment.tasks.data"))
        self.task_types = tuple(task_types) or TASK_TYPES

    def tasks(self, split: str) -> list[Task]:
        """The solvable games of a split, in the order of their paths.

        Like the official collector it skips games without `solvable: true`, and movable and sliced ones.
        Raises EnvError for a file that is damaged: it must not pass for an unsolvable game.
        """
        if split not in SPLITS:
            raise EnvError(f"environment.split: unknown split {split!r}; known: {', '.join(SPLITS)}")
        folders = (self.root / "json_2.1.1" / split, self.root / split)
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if folder is None:
            raise EnvError(f"{self.root}: no folder json_2.1.1/{split} or {split} in it; {_GET_GAMES}")
        files = sorted(folder.rglob(GAME_FILE))
        found = [task for path in files if (task := self._task(path, folder)) is not None]
        if not found:
            raise EnvError(
                f"{folder}: no solvable game of types {', '.join(self.task_types)} among {len(files)} files "
                f"{GAME_FILE}; {_GET_GAMES}"
            )
        return found

    def _task(self, path: Path, folder: Path) -> Task | None:
        """The task of a game file; its type is that of traj_data.json, or else of the folder's name."""
        name = path.parent.relative_to(folder).as_posix()
        own = "/".join(path.parts[-3:-1])  # folders of the task and of the trial
        if "movable" in own or "Sliced" in own:
            return None
        kind, trajectory = path.parent.parent.name.partition("-")[0], path.with_name("traj_data.json")
        if trajectory.exists():
            again = "generate or download it again"
            described = read_json(trajectory, again, again)
            kind = described.get("task_type") if isinstance(described, dict) else None
            if not isinstance(kind, str):
                raise EnvError(f"{trajectory}: not a JSON object with 'task_type'; {again}")
        if kind not in self.task_types:
            return None
        if read_game(path).get("solvable") is not True:
            return None
        return Task(name, kind, str(path))
