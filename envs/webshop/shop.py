"""A shop: its products, goals, search engine and tagger, loaded once per process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random

from envs.base import EnvironmentError
from envs.webshop.catalogue import Product, read_json, read_products
from envs.webshop.goals import Goal, GoalKind, read_goals
from envs.webshop.nouns import Tagger, TaggerName, tagger
from envs.webshop.search import BM25, SearchEngine


@dataclass(frozen=True, slots=True)
class ShopFiles:
    """Which shop: equal values always give an equal shop."""

    items: str  # path of items_shuffle[_1000].json
    attributes: str  # path of items_ins_v2[_1000].json
    instructions: str = ""  # path of items_human_ins.json; human goals need it
    goals: GoalKind = "synthetic"
    products: int | None = None  # the first so many; None takes all
    seed: int = 0  # of prices within a range, and of price limits
    nouns: TaggerName = "spacy"


class Shop:
    """Everything a visit needs, shared by all visits."""

    def __init__(
        self,
        products: Sequence[Product],
        goals: Sequence[Goal],
        nouns: Tagger,
        engine: Callable[[Sequence[Product]], SearchEngine] = BM25,
    ) -> None:
        self.products, self.goals, self.nouns = tuple(products), tuple(goals), nouns
        self._engine = engine

    @cached_property
    def search(self) -> SearchEngine:
        """The index, built when something is first searched."""
        return self._engine(self.products)


@lru_cache(maxsize=4)
def load_shop(files: ShopFiles) -> Shop:
    """The shop of `files`; raises EnvironmentError naming the file that cannot be used."""
    if files.goals not in ("synthetic", "human"):
        raise EnvironmentError(
            f"environment.tasks.goals: unknown kind {files.goals!r}; known: synthetic, human"
        )
    nouns = tagger(files.nouns)
    attributes = _table(files.attributes)
    instructions = _table(files.instructions) if files.goals == "human" else {}
    rng = Random(files.seed)
    products = read_products(Path(files.items), attributes, files.products, rng)
    try:
        goals = read_goals(files.goals, products, attributes, instructions, rng)
    except (KeyError, TypeError, AttributeError) as error:
        source = files.instructions if files.goals == "human" else files.attributes
        raise EnvironmentError(f"{source}: bad instruction ({error!r}); copy it again") from None
    return Shop(products, goals, nouns)


def _table(path: str) -> dict[str, object]:
    """A JSON object by ASIN."""
    table = read_json(Path(path))
    if not isinstance(table, dict):
        raise EnvironmentError(f"{path}: holds no table by asin; it is not one of WebShop's files")
    return table
