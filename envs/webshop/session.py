"""One session in the shop: the effect of actions, page by page."""

from __future__ import annotations

from random import Random

from envs.webshop import pages
from envs.webshop.catalog import Product
from envs.webshop.goals import Goal
from envs.webshop.reward import Score, score
from envs.webshop.search import RESULTS
from envs.webshop.shop import Shop


class Session:
    """A session with a goal, from the start page to a purchase."""

    def __init__(self, shop: Shop, goal: Goal) -> None:
        self.shop, self.goal = shop, goal
        self.product: Product | None = None
        self.options: dict[str, str] = {}  # chosen, name -> value
        self.score: Score | None = None  # set by the purchase
        self.page = pages.search_page(goal.instruction)
        self._keywords: list[str] = []
        self._found: tuple[Product, ...] = ()
        self._number = 1
        self._kind = "search"
        self._searches = 0

    @property
    def listed(self) -> tuple[Product, ...]:
        """The products on a page of results; none on other pages."""
        if self._kind != "results":
            return ()
        return self._found[(self._number - 1) * pages.PER_PAGE : self._number * pages.PER_PAGE]

    def act(self, action: str) -> bool:
        """Plays `search[...]` or `click[...]` and returns whether it was understood; else nothing happens.

        Searching is possible on every page, as in the original, whether or not it shows a search bar.
        """
        verb, argument = parse(action)
        argument = argument.lower()
        if self.score is not None:
            return False
        if verb == "search" and argument:
            self._search(argument.split(" "), 1)
        elif verb == "click" and argument in self.page.clickables and argument != pages.SEARCH:
            self._click(argument)
        else:
            return False
        return True

    def _click(self, target: str) -> None:
        if target == pages.BUY and self.product is not None:
            product, nouns = self.product, self.shop.nouns
            self.score = score(product, self.goal, product.price, self.options, nouns)
            self._kind = "done"
            self.page = pages.done_page(product.asin, self.options, self.score.reward)
        elif target == pages.BACK:
            self.product, self.options, self._kind = None, {}, "search"
            self.page = pages.search_page(self.goal.instruction)
        elif target == pages.NEXT and self._kind == "results":
            self._search(self._keywords, self._number + 1)
        elif target == pages.PREVIOUS and self._kind != "detail":
            self._search(self._keywords, self._number - (self._kind == "results"))
        elif target in pages.DETAILS and self.product is not None:
            self._kind = "detail"
            self.page = pages.detail_page(self.goal.instruction, self.product, target)
        else:
            self._open(target)

    def _open(self, target: str) -> None:
        """Shows an item page: of a listed product, or again after an option was chosen."""
        if self._kind == "results":
            self.product = next(product for product in self.listed if product.asin.lower() == target)
        elif self._kind == "item":
            assert self.product is not None
            names = [name for name, values in self.product.options.items() if target in values]
            self.options |= dict.fromkeys(names[-1:], target)
        assert self.product is not None
        self._kind = "item"
        self.page = pages.item_page(self.goal.instruction, self.product)

    def _search(self, keywords: list[str], number: int) -> None:
        self.product, self.options, self._kind = None, {}, "results"
        self._keywords, self._number = keywords, number
        self._searches += 1
        self._found = self._ranking()
        self.page = pages.results_page(self.goal.instruction, self.listed, len(self._found), number)

    def _ranking(self) -> tuple[Product, ...]:
        """The products for the keywords: ranked, or selected by one of WebShop's prefixes."""
        prefix, *rest = self._keywords
        text, products = " ".join(rest).strip(), self.shop.products
        if prefix == "<r>":
            return tuple(Random(self._searches).sample(products, min(RESULTS, len(products))))
        if prefix == "<a>":
            return tuple(product for product in products if text in product.attributes)
        if prefix == "<c>":
            category = rest[0].strip() if rest else ""
            return tuple(product for product in products if product.category == category)
        if prefix == "<q>":
            return tuple(product for product in products if product.query == text)
        return tuple(products[place] for place in self.shop.search(" ".join(self._keywords)))


def parse(action: str) -> tuple[str, str]:
    """The verb before the last possible `[` and the argument up to the last `]`, within the first line.

    Both are empty if there is none. Equivalent to matching `(.+)\\[(.+)\\]`, in linear time.
    """
    line, _, _ = action.partition("\n")
    end = line.rfind("]")
    start = line.rfind("[", 1, max(end - 1, 0))
    return (line[:start], line[start + 1 : end]) if start > 0 else ("", "")
