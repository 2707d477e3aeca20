"""The text and the clickable elements of pages, as WebShop's text mode extracts them from its HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from envs.webshop.catalog import Product

SEPARATOR = " [SEP] "
SEARCH, BACK, PREVIOUS, NEXT, BUY = "search", "back to search", "< prev", "next >", "buy now"
DETAILS = ("description", "features", "reviews", "attributes")
PER_PAGE = 10

_HTML_SPACE = " \t\n\f\r"
# JSON inside the original's HTML escapes these characters.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"})


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its text, and the texts of its clickable elements, in WebShop's order."""

    text: str
    clickables: tuple[str, ...] = ()
    search_bar: bool = False


def search_page(instruction: str) -> Page:
    """The start page."""
    text = _joined(["WebShop", "Instruction:", instruction, "Search"])
    return Page(text, (SEARCH,), search_bar=True)


def results_page(instruction: str, shown: Sequence[Product], total: int, number: int) -> Page:
    """Page `number` (from 1) of `total` products that were found."""
    turns = ["< Prev", "Next >"] if number > 1 else ["Next >"]
    parts = [*_head(instruction), f"Page {number} (Total results: {total})", *turns]
    for product in shown:
        parts += [product.asin, product.title, product.price_text]
    clickables = [BACK, *map(str.lower, turns), *(product.asin.lower() for product in shown)]
    return Page(_joined(parts), tuple(dict.fromkeys(clickables)))


def item_page(instruction: str, product: Product) -> Page:
    """A product with its options."""
    parts = [*_head(instruction), "< Prev"]
    for name, values in product.options.items():
        parts += [name, *values]
    parts += [product.title, f"Price: {product.price_text}", "Rating: N.A."]
    parts += ["Description", "Features", "Reviews", "Buy Now"]
    values = (value for values in product.options.values() for value in values)
    clickables = [BACK, PREVIOUS, *DETAILS[:3], BUY, *values]
    return Page(_joined(parts), tuple(dict.fromkeys(clickables)))


def detail_page(instruction: str, product: Product, name: str) -> Page:
    """One of the DETAILS of a product."""
    details = {
        "description": [product.description],
        "features": [f" {bullet}" for bullet in product.bullets],
        "reviews": [],  # the published files have none
        "attributes": [
            *(f" {attribute}" for attribute in product.attributes),
            product.category,
            product.query,
            product.product_category,
        ],
    }
    return Page(_joined([*_head(instruction), "< Prev", *details[name]]), (BACK, PREVIOUS))


def done_page(asin: str, options: Mapping[str, str], reward: float) -> Page:
    """The last page; the original's template shows the goal's fields empty."""
    shown = json.dumps(dict(options), sort_keys=True).translate(_ESCAPES)
    purchased = ["asin", asin, "options", shown]
    for unset in ("attrs", "category", "query", "product category"):
        purchased += [unset, "None"]
    target = ["asin", "options", "attrs", "price upper", "instuction text", "category", "product category"]
    parts = [
        "Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)",
        "Purchased", *purchased, "Target", *target, "query", "Goal", "None",
        "Reward", "Your score (min 0.0, max 1.0)", str(reward), "Reward Details", "None",
    ]  # fmt: skip
    return Page(SEPARATOR.join(parts))


def _head(instruction: str) -> list[str]:
    return ["Instruction:", instruction, "Back to Search"]


def _joined(parts: Iterable[str]) -> str:
    """The parts as the original extracts them from HTML.

    Empty parts and those of blank lines are skipped, other white space leaves an empty part.
    """
    shown: list[str] = []
    for part in parts:
        if not part.strip(_HTML_SPACE):
            if part and "\n" not in part:
                shown.append("")
        else:
            shown.append(part.strip())
    return SEPARATOR.join(shown)
