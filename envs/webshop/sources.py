"""The task source of a run: WebShop's files, or a catalog generated on first use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from envs.base import EnvError, Task
from envs.files import expanded
from envs.registry import check_options
from envs.webshop.environment import write_source
from envs.webshop.goals import GoalKind, split_indices
from envs.webshop.noun_extraction import NounMethod, installed_model
from envs.webshop.shop import ShopFiles, load_shop

_NAMES = {"items": "items_shuffle{}.json", "attributes": "items_ins_v2{}.json"}
_INSTRUCTIONS = "items_human_ins.json"


class WebShopTasks:
    """The goals of a shop: the first 500 of its shuffled goals are `test`, the others `train`."""

    def __init__(self, files: ShopFiles) -> None:
        self.files = files

    def tasks(self, split: str) -> list[Task]:
        """The tasks of `train` or `test`; raises EnvError if the files cannot be used."""
        goals = load_shop(self.files).goals
        return [
            Task(f"goal_{index}", self.files.goals, write_source(self.files, index))
            for index in split_indices(goals, split, self.files.items)
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
    nouns: NounMethod = "spacy",
    generate: Mapping[str, Any] | None = None,
) -> WebShopTasks:
    """The goals of the files in the folder `data` (default: $WEBSHOP_DATA), or of files given by path.

    `small` selects those ending in _1000; without it, those that exist. `generate` holds `products`, `kinds`,
    `values` and `seed` of a synthetic catalog; an existing folder is used unchanged. Prices and their limits
    are drawn with `seed`. Raises EnvError if something is missing.
    """
    if nouns == "spacy":
        installed_model()
    folder = data or os.environ.get("WEBSHOP_DATA", "")
    root = Path(expanded(folder, "environment.tasks.data")) if folder else None
    if generate is not None:
        if root is None:
            raise EnvError(
                "environment.tasks.generate needs a folder to fill: set environment.tasks.data"
            )
        if not root.exists():
            # the generator is also a program (python -m), which must not be imported before it runs
            from envs.webshop.generate import generate as generate_catalog

            made = partial(generate_catalog, root)
            check_options(made, generate, "environment.tasks.generate", "webshop")
            made(**generate)
    ending = _ending(root, small)
    named = {"items": items, "attributes": attributes}
    found = {key: path or _in(root, _NAMES[key].format(ending), key) for key, path in named.items()}
    if goals == "human":
        found["instructions"] = instructions or _in(root, _INSTRUCTIONS, "instructions")
    return WebShopTasks(ShopFiles(**found, goals=goals, products=products, seed=seed, nouns=nouns))


def _ending(root: Path | None, small: bool | None) -> str:
    """The ending of the file names in `root`: _1000 for the small catalog."""
    if small is not None or root is None:
        return "_1000" if small else ""
    present = [ending for ending in ("", "_1000") if (root / _NAMES["items"].format(ending)).exists()]
    if len(present) == 2:
        raise EnvError(f"environment.tasks.data {root} holds both sizes; set environment.tasks.small")
    return present[0] if present else ""


def _in(root: Path | None, name: str, key: str) -> str:
    if root is None:
        raise EnvError(
            f"environment.tasks.{key}: no file given, nor environment.tasks.data or WEBSHOP_DATA; set one of "
            "them, or environment.tasks.generate for a synthetic catalog"
        )
    return str(root / name)
