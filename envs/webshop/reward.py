"""How well a purchase meets a goal: WebShop's reward, from 0 to 1."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.utils import default_process

from envs.webshop.catalog import Product
from envs.webshop.goals import Goal
from envs.webshop.noun_extraction import NounExtractor

SAME = 85  # texts with a larger token-set ratio, in percent, match
NO_NOUNS = 0.2  # title score if the goal's name has no noun

# The colors that WebShop (MIT license) reduces an option to; the first one in this order counts.
_COLOR_NAMES = """
alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel
camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry
cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green
grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot
midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple
rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan
taupe teal tiger turquoise violet walnut wheat white wine yellow
"""
_COLORS = tuple(_COLOR_NAMES.split())
_LATIN_1 = dict.fromkeys(range(128, 256))  # dropped before texts are compared


@dataclass(frozen=True, slots=True)
class Score:
    """A purchase's reward and its components."""

    reward: float
    type: float  # 1, 0.5, 0.1 or 0: how well the kind of product matches
    title: float  # share of the goal's nouns in the product's name
    attributes: float  # share met
    options: float | None  # share met; None if the goal has none
    price: bool


def score(
    product: Product, goal: Goal, price: float, options: Mapping[str, str], nouns: NounExtractor
) -> Score:
    """Scores buying `product` at `price` with the chosen `options` (name -> value)."""
    kind, title = _type_score(product, goal, nouns)
    texts = (product.title.lower(), " ".join(product.bullets).lower(), product.description.lower())
    attributes = sum(
        any(same(own, attribute) for own in product.attributes) or any(attribute in text for text in texts)
        for attribute in goal.attributes
    )
    chosen = [normalize_color(value) for value in options.values()]
    met = sum(any(same(value, wanted(option)) for value in chosen) for option in goal.options)
    affordable = goal.price_upper > 0 and price <= goal.price_upper
    share = (attributes + met + affordable) / (len(goal.attributes) + len(goal.options) + 1)
    return Score(
        reward=share * kind,
        type=kind,
        title=title,
        attributes=attributes / len(goal.attributes) if goal.attributes else 0.0,
        options=met / len(goal.options) if goal.options else None,
        price=affordable,
    )


def _type_score(product: Product, goal: Goal, nouns: NounExtractor) -> tuple[float, float]:
    title = title_score(nouns(product.title), nouns(goal.name))
    if title == 0.0:
        return 0.0, title
    if title < 0.1:
        return 0.1, title
    categories = _categories(product.product_category) & _categories(goal.product_category)
    alike = product.query == goal.query or len(categories) >= 2 or title > 0.2
    return (1.0 if alike else 0.5), title


def title_score(bought: Collection[str], wanted: Collection[str]) -> float:
    """The number of distinct common nouns per wanted noun."""
    return len(set(bought) & set(wanted)) / len(wanted) if wanted else NO_NOUNS


@lru_cache(maxsize=4096)
def _categories(path: str) -> frozenset[str]:
    return frozenset(part.strip() for part in path.split("\u203a"))


@lru_cache(maxsize=65536)
def same(one: str, other: str) -> bool:
    """Whether two texts have nearly the same words, by thefuzz's token_set_ratio."""
    return round(token_set_ratio(_processed(one), _processed(other))) > SAME


@lru_cache(maxsize=65536)
def _processed(text: str) -> str:
    return default_process(text.translate(_LATIN_1))


def normalize_color(value: str) -> str:
    """The first known color in `value`, or `value` itself."""
    return next((known for known in _COLORS if known in value), value)


def wanted(option: str | tuple[str, str]) -> str:
    """The text with which an option of a goal is compared.

    A synthetic goal's pair counts as a color only if one of its parts is exactly a color; any other pair is
    compared as the text of the pair, so that its name counts as a word too.
    """
    if isinstance(option, str):
        return normalize_color(option)
    return next((known for known in _COLORS if known in option), str(option))
