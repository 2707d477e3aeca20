"""Where goals come from: WebShop's files, or a catalogue generated on first use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.base import EnvironmentError, Task
from envs.webshop.environment import write_source
from envs.webshop.goals import GoalKind, split_of
from envs.webshop.nouns import TaggerName
from envs.webshop.shop import ShopFiles, load_shop

_NAMES = {"items": "items_shuffle{}.json", "attributes": "items_ins_v2{}.json"}
_INSTRUCTIONS = "items_human_ins.json"


class WebShopTasks:
    """The goals of a shop: the first 500 of its shuffled goals are `test`, the others `train`."""

    def __init__(self, files: ShopFiles) -> None:
        self.files = files

    def tasks(self, split: str) -> list[Task]:
        """The tasks of `train` or `test`; raises EnvironmentError where the files cannot be used."""
        goals = load_shop(self.files).goals
        return [
            Task(f"goal_{index}", self.files.goals, write_source(self.files, index))
            for index in split_of(goals, split, self.files.items)
        ]


def task_source(
    data: str | None = None,
    small: bool | None = None,
    items: str | None = None,
    attributes: str | None = None,
    instructions: str | None = None,
    goals: GoalKind = "synthetic",
    products: int | None = None,
    seed: int = 0,
    nouns: TaggerName = "spacy",
    generate: Mapping[str, Any] | None = None,
) -> WebShopTasks:
    """The goals of the files in the folder `data` (default: $WEBSHOP_DATA), or of files given by path.

    `small` takes those ending in _1000; without it, whichever are there. `generate` holds `products`,
    `kinds`, `values` and `seed` of a synthetic catalogue; a folder that exists is taken as it is. Prices and
    their limits are drawn with `seed`. Raises EnvironmentError where something is missing.
    """
    folder = os.path.expandvars(data or os.environ.get("WEBSHOP_DATA", ""))
    root = Path(folder).expanduser() if folder else None
    if generate is not None:
        if root is None:
            raise EnvironmentError(
                "environment.tasks.generate needs environment.tasks.data, a folder to fill"
            )
        if not root.exists():
            _generate(root, generate)
    ending = _ending(root, small)
    named = {"items": items, "attributes": attributes}
    found = {key: path or _in(root, _NAMES[key].format(ending), key) for key, path in named.items()}
    if goals == "human":
        found["instructions"] = instructions or _in(root, _INSTRUCTIONS, "instructions")
    return WebShopTasks(ShopFiles(**found, goals=goals, products=products, seed=seed, nouns=nouns))


def _ending(root: Path | None, small: bool | None) -> str:
    """How the names of the files end in `root`: _1000 for the small catalogue."""
    if small is not None or root is None:
        return "_1000" if small else ""
    there = [ending for ending in ("", "_1000") if (root / _NAMES["items"].format(ending)).exists()]
    if len(there) == 2:
        raise EnvironmentError(f"environment.tasks.data {root} holds both sizes; set environment.tasks.small")
    return there[0] if there else ""


def _in(root: Path | None, name: str, key: str) -> str:
    if root is None:
        raise EnvironmentError(
            f"environment.tasks.{key}: no file given, nor environment.tasks.data or WEBSHOP_DATA; set one of "
            "them, or environment.tasks.generate for a synthetic catalogue"
        )
    return str(root / name)


def _generate(root: Path, how: Mapping[str, Any]) -> None:
    # the generator is also a program (python -m), which must not be imported before it runs
    from envs.webshop.generate import Assortment, generate

    known = {*Assortment.__slots__, "seed"}
    if unknown := sorted(set(how) - known):
        raise EnvironmentError(
            f"environment.tasks.generate: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}"
        )
    seed = how.get("seed", 0)
    generate(root, Assortment(**{key: value for key, value in how.items() if key != "seed"}), seed)
