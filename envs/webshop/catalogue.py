"""The products of a shop, read from the files that WebShop publishes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from random import Random
from typing import Any

from envs.base import EnvironmentError

LONGEST_ASIN = 10
NO_PRICE = 100.0  # what a product costs whose file names no price
NO_ATTRIBUTES = ("DUMMY_ATTR",)

_TEXTS = ("name", "category", "query", "product_category", "full_description")
_NOT_IN_A_PRICE = re.compile(r"[^\d.]")


@dataclass(frozen=True, slots=True)
class Product:
    """One product; texts are as shown, option names and values in lower case."""

    asin: str
    title: str
    category: str
    query: str
    product_category: str
    description: str
    bullets: tuple[str, ...]
    attributes: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    price_text: str
    price: float  # dollars; drawn once where the file gives a range


def read_json(path: Path) -> Any:
    """The JSON value in a file; raises EnvironmentError naming the file and what to do."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EnvironmentError(
            f"{path}: cannot be read ({error.strerror}); give WebShop's files by environment.tasks.data, or "
            "environment.tasks.generate for a synthetic catalogue"
        ) from None
    except ValueError as error:
        raise EnvironmentError(f"{path}: not a complete JSON file ({error}); copy it again") from None


def read_products(
    items: Path, attributes: Mapping[str, Any], limit: int | None, rng: Random
) -> tuple[Product, ...]:
    """The first `limit` products of `items` (all without), duplicates and malformed ASINs left out.

    Prices given as a range are drawn from `rng` in file order. Raises EnvironmentError for a broken entry.
    """
    entries = read_json(items)
    if not isinstance(entries, list):
        raise EnvironmentError(f"{items}: holds no list of products; it is not an items_shuffle file")
    products: list[Product] = []
    for entry in _distinct(items, entries[:limit]):
        try:
            products.append(_product(items, entry, attributes, rng))
        except (KeyError, TypeError, AttributeError) as error:
            raise EnvironmentError(f"{items}: product {entry['asin']} cannot be used ({error!r})") from None
    return tuple(products)


def _distinct(items: Path, entries: list[Any]) -> Iterator[Mapping[str, Any]]:
    seen: set[str] = set()
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or "asin" not in entry:
            raise EnvironmentError(f"{items}: entry {place} is no product, it has no asin")
        asin = str(entry["asin"])
        if asin == "nan" or len(asin) > LONGEST_ASIN or asin in seen:
            continue
        seen.add(asin)
        yield entry


def _product(items: Path, entry: Mapping[str, Any], attributes: Mapping[str, Any], rng: Random) -> Product:
    asin = str(entry["asin"])
    for key in _TEXTS:
        if not isinstance(entry.get(key), str):
            raise EnvironmentError(f"{items}: product {asin}: {key!r} is missing or not text")
    bullets = entry.get("small_description", [])
    bounds = _bounds(entry.get("pricing"))
    return Product(
        asin=asin,
        title=entry["name"],
        category=entry["category"],
        query=entry["query"].lower().strip(),
        product_category=entry["product_category"],
        description=entry["full_description"],
        bullets=tuple(map(str, bullets)) if isinstance(bullets, list) else (str(bullets),),
        attributes=tuple(attributes.get(asin, {}).get("attributes", NO_ATTRIBUTES)),
        options=_options(entry.get("customization_options")),
        price_text=" to ".join(f"${bound}" for bound in bounds),
        price=bounds[0] if len(bounds) == 1 else rng.uniform(*bounds),
    )


def _bounds(pricing: str | None) -> list[float]:
    """The one or two prices in a text like "$10.00$25.00"."""
    try:
        prices = [float(Decimal(_NOT_IN_A_PRICE.sub("", part))) for part in (pricing or "").split("$")[1:]]
    except InvalidOperation:
        prices = []
    return prices[:2] or [NO_PRICE]


def _options(customization: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    return {
        name.lower(): tuple(value["value"].strip().replace("/", " | ").lower() for value in values)
        for name, values in (customization or {}).items()
        if values is not None
    }
