"""The task source of a run: a folder of questions, which can be filled on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from envs.base import EnvError
from envs.registry import check_options
from envs.search.questions import SearchTasks


def task_source(
    data: str,
    kinds: Sequence[str] = (),
    offline: bool = False,
    generate: Mapping[str, Any] | None = None,
) -> SearchTasks:
    """The questions in the folder `data`; if it does not exist, it is filled with a corpus and questions.

    With `offline` they come from data packages; with `generate` they are about fictional people, whose number
    is `people`, drawn with `seed`. Raises EnvError for unknown keys.
    """
    if offline and generate is not None:
        raise EnvError("environment.tasks: give one of offline and generate, not both")
    if not Path(data).exists():
        if offline:
            from envs.search.offline import (
                build,  # also a program (python -m), which must not be imported before it runs
            )

            build(Path(data))
        if generate is not None:
            from envs.search.generate import generate as generate_people

            made = partial(generate_people, Path(data))
            check_options(made, generate, "environment.tasks.generate", "search")
            made(**generate)
    return SearchTasks(data, kinds)
