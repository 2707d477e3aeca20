"""Game files on disk: the official folder layout, and errors that say what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.alfworld.engine import Game, compile_game
from envs.base import EnvironmentError, Task

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

_SOLVABLE = re.compile(r'(?<!\\)"solvable"\s*:\s*(true|false)')
_GET_GAMES = "make games with `python -m envs.alfworld.generate --output DIR` or run `alfworld-download`"


def read_game(path: str | Path) -> dict[str, Any]:
    """The JSON object in a game file; raises EnvironmentError naming the file and the remedy."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise EnvironmentError(
            f"{path}: cannot read the game file ({error.strerror}); {_GET_GAMES}"
        ) from None
    except ValueError as error:
        raise EnvironmentError(
            f"{path}: not a complete JSON file ({error}); it is cut or damaged: generate or download it again"
        ) from None
    keys = ("pddl_domain", "grammar", "pddl_problem")
    missing = [key for key in keys if not isinstance(data, dict) or not isinstance(data.get(key), str)]
    if missing:
        raise EnvironmentError(
            f"{path}: key {missing[0]!r} is missing or not text; a game.tw-pddl needs {', '.join(keys)}"
        )
    return data


def load_game(path: str | Path) -> Game:
    """The parsed game of a file; the most recent ones are kept, a changed file is read again."""
    try:
        stamp = os.stat(path)
    except OSError as error:
        raise EnvironmentError(
            f"{path}: cannot read the game file ({error.strerror}); {_GET_GAMES}"
        ) from None
    return _load(str(path), stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=512)
def _load(path: str, modified: int, size: int) -> Game:
    data = read_game(path)
    try:
        return compile_game(data["pddl_domain"], data["grammar"], data["pddl_problem"])
    except (ValueError, LookupError, RecursionError) as error:  # EnvironmentError is a ValueError
        reason = str(error) if isinstance(error, EnvironmentError) else f"cannot be understood ({error!r})"
        raise EnvironmentError(f"{path}: {reason}; generate or download it again") from None


class AlfworldTasks:
    """The games under `data` (default: $ALFWORLD_DATA), in `json_2.1.1/<split>/...` or `<split>/...`."""

    def __init__(self, data: str | None = None, task_types: Sequence[str] = ()) -> None:
        root = data or os.environ.get("ALFWORLD_DATA", "")
        if not root:
            raise EnvironmentError(
                f"environment.data: no folder given and ALFWORLD_DATA is not set; {_GET_GAMES}"
            )
        unknown = sorted(set(task_types) - set(TASK_TYPES))
        if unknown:
            raise EnvironmentError(
                f"environment.task_types: unknown task type {unknown[0]!r}; known: {', '.join(TASK_TYPES)}"
            )
        self.root = Path(os.path.expandvars(root)).expanduser()
        self.task_types = tuple(task_types) or TASK_TYPES

    def tasks(self, split: str) -> list[Task]:
        """The solvable games of a split, in the order of their paths.

        Like the official collector it skips games without `solvable: true`, and movable and sliced ones.
        """
        folder = self._folder(split)
        found = [
            task for path in sorted(folder.rglob(GAME_FILE)) if (task := self._task(path, folder)) is not None
        ]
        if not found:
            raise EnvironmentError(
                f"{folder}: no solvable game of types {', '.join(self.task_types)}; {_GET_GAMES}"
            )
        return found

    def _folder(self, split: str) -> Path:
        if split not in SPLITS:
            raise EnvironmentError(f"environment.split: unknown split {split!r}; known: {', '.join(SPLITS)}")
        for folder in (self.root / "json_2.1.1" / split, self.root / split):
            if folder.is_dir():
                return folder
        raise EnvironmentError(f"{self.root}: no folder json_2.1.1/{split} or {split} in it; {_GET_GAMES}")

    def _task(self, path: Path, folder: Path) -> Task | None:
        name = path.parent.relative_to(folder).as_posix()
        if "movable" in name or "Sliced" in name:
            return None
        kind = _task_type(path)
        if kind not in self.task_types:
            return None
        try:
            solvable = _SOLVABLE.search(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise EnvironmentError(f"{path}: cannot read the game file ({error}); {_GET_GAMES}") from None
        if solvable is None:
            read_game(path)  # complains where the file is cut: that must not pass for an unsolvable game
        if solvable is None or solvable[1] == "false":
            return None
        return Task(name, kind, str(path))


def _task_type(game: Path) -> str:
    """What traj_data.json beside the game says, else the folder's name (`<type>-<object>-...`)."""
    for kind in _recorded_types(game):
        return kind
    return game.parent.parent.name.partition("-")[0]


def _recorded_types(game: Path) -> Iterator[str]:
    beside = game.with_name("traj_data.json")
    if beside.exists():
        try:
            yield str(json.loads(beside.read_text(encoding="utf-8"))["task_type"])
        except (OSError, ValueError, KeyError, TypeError):
            raise EnvironmentError(
                f"{beside}: not a JSON object with 'task_type'; generate or download it again"
            ) from None
