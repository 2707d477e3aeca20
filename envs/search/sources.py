"""Where a run's questions come from: a folder, built from data packages on first use if the run says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envs.search.questions import SearchTasks


def task_source(data: str, kinds: Sequence[str] = (), offline: bool = False) -> SearchTasks:
    """The questions in the folder `data`; with `offline` it is built, corpus and all, where there is none."""
    if offline and not Path(data).exists():
        from envs.search.offline import build  # a program too (python -m), not to be imported before it runs

        build(Path(data))
    return SearchTasks(data, kinds)
