"""A scripted expert: searches for the requested product, opens a fitting one, chooses its options, buys."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import Any

from envs.base import Demonstration, Observation, Task
from envs.webshop import pages
from envs.webshop.catalog import Product
from envs.webshop.environment import WebShopEnvironment
from envs.webshop.reward import normalize_color, same, score, wanted
from envs.webshop.session import Session

LAST_PAGE = 5  # fifty results, ten a page


class Shopper:
    """Plays one episode.

    It searches for the attributes and the kind of product in the instruction, and knows for every listed
    product whether buying it would score 1. It opens the first such product, turning pages, and searches for
    the goal's own title if there is none. At every step, with probability `detour`, it plays another possible
    action, but never buys; it does not turn the pages of a random search.
    """

    def __init__(self, session: Session, rng: Random, detour: float = 0.0) -> None:
        self.session, self.rng, self.detour = session, rng, detour
        goal = session.goal
        self._query = " ".join([*goal.attributes, goal.query]).lower()
        self._turned = 0
        self._random_search = False

    def action(self) -> str:
        """The next action; the expert assumes that it is played."""
        if self.detour > 0 and self.rng.random() < self.detour:
            return self._detour()
        page, product = self.session.page, self.session.product
        if page.search_bar:
            self._turned, self._random_search = 0, False
            return f"search[{self._query}]"
        if product is None:
            return self._pick()
        purchase = self._purchase(product)
        if pages.BUY not in page.clickables or purchase is None:
            return f"click[{pages.PREVIOUS}]"
        chosen = self.session.options
        missing = [value for name, value in purchase.items() if chosen.get(name) != value]
        return f"click[{missing[0] if missing else pages.BUY}]"

    def _pick(self) -> str:
        """Opens the first listed product that fits, or continues the search."""
        for product in self.session.listed:
            if self._purchase(product) is not None:
                return f"click[{product.asin.lower()}]"
        if self._random_search:
            return f"click[{pages.BACK}]"
        self._turned += 1
        if self._turned < LAST_PAGE:
            return f"click[{pages.NEXT}]"
        self._query = self.session.goal.name.lower()
        return f"click[{pages.BACK}]"

    def _purchase(self, product: Product) -> dict[str, str] | None:
        """The options to choose, name -> value, so that buying `product` scores 1; None if there are none."""
        goal, chosen = self.session.goal, dict[str, str]()
        for option in goal.options:
            name, value = option if isinstance(option, tuple) else ("", option)
            fitting = [
                (own == name, offer == value, own, offer)
                for own, offers in product.options.items() if own not in chosen
                for offer in offers if same(normalize_color(offer), wanted(option))
            ]  # fmt: skip
            if fitting:
                *_, own, offer = max(fitting)
                chosen[own] = offer
        worth = score(product, goal, product.price, chosen, self.session.shop.nouns).reward
        return chosen if worth == 1.0 else None

    def _detour(self) -> str:
        page = self.session.page
        idle = [text for text in page.clickables if text not in (pages.BUY, pages.SEARCH)]
        if page.search_bar or not idle:
            self._random_search = True
            return f"search[{self.rng.choice(self._query.split())}]"
        choice = self.rng.choice(idle)
        self._turned += choice == pages.NEXT
        return f"click[{choice}]"


def demonstrate(
    task: Task,
    seed: int,
    detour: float = 0.0,
    max_steps: int = 15,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Demonstration:
    """One expert episode in an environment made with `options`, with `max_steps` replaced."""
    environment = WebShopEnvironment(**{**options, "max_steps": max_steps})
    observation = environment.reset(task)
    shopper = Shopper(environment.session, Random(f"{seed}/{task.id}"), detour)
    turns: list[tuple[Observation, str]] = []
    while True:
        action = shopper.action()
        turns.append((observation, action))
        transition = environment.step(action)
        observation = transition.observation
        if transition.done:
            return Demonstration(tuple(turns), transition.success)
