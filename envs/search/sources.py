"""Where a run's questions come from: a folder, filled on first use if the run says how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.base import EnvironmentError
from envs.search.questions import SearchTasks


def task_source(
    data: str,
    kinds: Sequence[str] = (),
    offline: bool = False,
    generate: Mapping[str, Any] | None = None,
) -> SearchTasks:
    """The questions in the folder `data`, which is filled, corpus and all, where there is none.

    With `offline` from data packages; with `generate`, of made-up people: their number `people`, and `seed`.
    """
    if offline and generate is not None:
        raise EnvironmentError("environment.tasks: give one of offline and generate, not both")
    if not Path(data).exists():
        if offline:
            from envs.search.offline import build  # a program too (python -m), not imported before it runs

            build(Path(data))
        if generate is not None:
            _generate(Path(data), generate)
    return SearchTasks(data, kinds)


def _generate(folder: Path, how: Mapping[str, Any]) -> None:
    from envs.search.generate import generate

    if unknown := sorted(set(how) - {"people", "seed"}):
        raise EnvironmentError(f"environment.tasks.generate: unknown key {unknown[0]!r}; known: people, seed")
    generate(folder, **how)
