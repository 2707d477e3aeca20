"""A shop: its products, goals, search engine and noun extraction, loaded once per process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random

from envs.base import EnvError
from envs.webshop.catalog import Product, Table, read_products
from envs.webshop.goals import Goal, GoalKind, read_goals
from envs.webshop.noun_extraction import NounExtractor, NounMethod, noun_extractor
from envs.webshop.search import BM25


@dataclass(frozen=True, slots=True)
class ShopFiles:
    """The files and settings of a shop; equal values always give an equal shop."""

    items: str  # path of items_shuffle[_1000].json
    attributes: str  # path of items_ins_v2[_1000].json
    instructions: str = ""  # path of items_human_ins.json; human goals need it
    goals: GoalKind = "synthetic"
    products: int | None = None  # number of entries that are read; None: all
    seed: int = 0  # of prices within a range, and of price limits
    nouns: NounMethod = "spacy"


class Shop:
    """Everything that sessions share."""

    def __init__(self, products: Sequence[Product], goals: Sequence[Goal], nouns: NounExtractor) -> None:
        self.products, self.goals, self.nouns = tuple(products), tuple(goals), nouns

    @cached_property
    def search(self) -> BM25:
        """The index, built at the first search."""
        return BM25(self.products)


@lru_cache(maxsize=4)
def load_shop(files: ShopFiles) -> Shop:
    """The shop of `files`; raises EnvError with the file that cannot be used."""
    if files.goals not in ("synthetic", "human"):
        raise EnvError(
            f"environment.tasks.goals: unknown kind {files.goals!r}; known: synthetic, human"
        )
    nouns = noun_extractor(files.nouns)
    attributes = Table.read(files.attributes)
    instructions = Table.read(files.instructions) if files.goals == "human" else Table()
    rng = Random(files.seed)
    products = read_products(Path(files.items), attributes, files.products, rng)
    return Shop(products, read_goals(files.goals, products, attributes, instructions, rng), nouns)
