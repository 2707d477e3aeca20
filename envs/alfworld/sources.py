"""Where a run's games come from: a folder, filled by the generator on first use if the run says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from envs.alfworld.games import TASK_TYPES, AlfworldTasks
from envs.base import EnvironmentError

_KEYS = ("games", "seed", "receptacles", "objects")


def task_source(
    data: str | None = None, task_types: Sequence[str] = (), generate: Mapping[str, Any] | None = None
) -> AlfworldTasks:
    """The games under `data` (default: $ALFWORLD_DATA), generated on first use where `generate` says how.

    `generate` holds `games` (split -> number) and optionally `seed`, `receptacles` and `objects` (the rooms'
    limits); a folder that exists is taken as it is. Raises EnvironmentError for anything else.
    """
    if generate is not None and data is not None and not Path(data).exists():
        _generate_all(Path(data), tuple(task_types) or TASK_TYPES, generate)
    return AlfworldTasks(data, task_types)


def _generate_all(data: Path, task_types: Sequence[str], how: Mapping[str, Any]) -> None:
    """All splits of `how`, into a folder that appears when it is complete."""
    # the generator is also a program (python -m), which must not be imported before it runs
    from envs.alfworld.generate import generate
    from envs.alfworld.scenes import Limits

    unknown = sorted(set(how) - set(_KEYS))
    if unknown or "games" not in how:
        raise EnvironmentError(
            f"environment.tasks.generate: unknown or missing keys {unknown or ['games']}; "
            f"known: {', '.join(_KEYS)}"
        )
    limits = Limits(how.get("receptacles"), how.get("objects"))
    partial = data.with_name(data.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tqdm(total=sum(how["games"].values()), unit="game", desc="games", leave=False, disable=None) as bar:
        for split, count in how["games"].items():
            for _ in generate(partial, split, count, how.get("seed", 0), task_types, limits):
                bar.update()
    os.replace(partial, data)
