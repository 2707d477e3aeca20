"""The products of a shop, read from the files that WebShop publishes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from random import Random
from typing import Any

from envs.base import EnvError
from envs.files import read_json

LONGEST_ASIN = 10
NO_PRICE = 100.0  # the price of a product without one in the files
NO_ATTRIBUTES = ("DUMMY_ATTR",)

_ABSENT = (
    "set environment.tasks.data to the folder of WebShop's files, or environment.tasks.generate for a "
    "synthetic catalog"
)
_TEXTS = ("name", "category", "query", "product_category", "full_description")
_NOT_IN_A_PRICE = re.compile(r"[^\d.]")
_NUMBER = re.compile(r"\s*(\d{1,3}(,\d{3})+|\d+)(\.\d+)?\s*")


@dataclass(frozen=True, slots=True)
class Product:
    """One product; texts as they are shown, option names and values in lower case."""

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
    price: float  # dollars; drawn once if the file gives a range


@dataclass(frozen=True, slots=True)
class Table:
    """A JSON file with one entry per ASIN."""

    path: str = ""
    entries: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def read(cls, path: str) -> Table:
        """The table in a file; raises EnvError for any other file."""
        entries = read_json(Path(path), _ABSENT, "copy it again")
        if not isinstance(entries, dict):
            raise EnvError(f"{path}: not a JSON object with one entry per asin; copy WebShop's file again")
        return cls(path, entries)

    def place(self, asin: str) -> str:
        """File and product, for messages."""
        return f"{self.path}: product {asin}"

    def fields(self, asin: str) -> Mapping[str, Any]:
        """The object of a product, empty if there is none; raises EnvError for another value."""
        found = self.entries.get(asin)
        if found is not None and not isinstance(found, dict):
            raise EnvError(f"{self.place(asin)}: {found!r:.80} is not an object; copy WebShop's file again")
        return found or {}


def read_texts(fields: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
    """The list of texts under `key`, empty if it is absent; raises EnvError for another value."""
    found = fields.get(key)
    if found is not None and not (isinstance(found, list) and all(isinstance(text, str) for text in found)):
        raise EnvError(f"{place}: {key} is {found!r:.80}; it must be a list of texts")
    return tuple(found or ())


def read_products(
    items: Path, attributes: Table, limit: int | None, rng: Random
) -> tuple[Product, ...]:
    """The products of the first `limit` entries of `items` (None: all) without duplicate and malformed ASINs.

    Prices given as a range are drawn from `rng` in file order. Raises EnvError for a malformed entry.
    """
    entries = read_json(items, _ABSENT, "copy it again")
    if not isinstance(entries, list):
        raise EnvError(f"{items}: not a list of products; give an items_shuffle file")
    products: dict[str, Product] = {}
    for place, entry in enumerate(entries[:limit]):
        if not isinstance(entry, dict) or not isinstance(entry.get("asin"), str | int | float):
            raise EnvError(f"{items}: entry {place} is not a product, it has no asin")
        asin = str(entry["asin"])
        if asin == "nan" or len(asin) > LONGEST_ASIN or asin in products:
            continue
        try:
            products[asin] = _product(items, entry, attributes, rng)
        except (KeyError, TypeError, AttributeError) as error:
            raise EnvError(f"{items}: product {asin} cannot be used ({error!r})") from None
    return tuple(products.values())


def _product(items: Path, entry: Mapping[str, Any], attributes: Table, rng: Random) -> Product:
    asin = str(entry["asin"])
    for key in _TEXTS:
        if not isinstance(entry.get(key), str):
            raise EnvError(f"{items}: product {asin}: {key!r} is missing or not text")
    bullets = entry.get("small_description") or []
    bounds = _prices(entry.get("pricing"), f"{items}: product {asin}")
    options: Mapping[str, Any] = entry.get("customization_options") or {}
    return Product(
        asin=asin,
        title=entry["name"],
        category=entry["category"],
        query=entry["query"].lower().strip(),
        product_category=entry["product_category"],
        description=entry["full_description"],
        bullets=tuple(str(bullet) for bullet in bullets if bullet is not None)
        if isinstance(bullets, list)
        else (str(bullets),),
        attributes=read_texts(attributes.fields(asin), "attributes", attributes.place(asin)) or NO_ATTRIBUTES,
        options={
            name.lower(): tuple(value["value"].strip().replace("/", " | ").lower() for value in values)
            for name, values in options.items()
            if values is not None
        },
        price_text=" to ".join(f"${bound}" for bound in bounds),
        price=bounds[0] if len(bounds) == 1 else rng.uniform(*bounds),
    )


def _prices(pricing: object, place: str) -> list[float]:
    """The one or two prices in a text like "$10.00$25.00", a number, or what stands for no price.

    Text with dollar signs is read as in the original, whatever is between the numbers.
    """
    if pricing is None or pricing == "" or pricing != pricing:  # NaN is how pandas writes a missing value
        return [NO_PRICE]
    parts: list[object] = [pricing]
    if isinstance(pricing, str):
        if "$" in pricing:
            parts = [_NOT_IN_A_PRICE.sub("", part) for part in pricing.split("$")[1:]]
        elif not any(map(str.isdigit, pricing)):
            return [NO_PRICE]  # "Currently unavailable"
        elif _NUMBER.fullmatch(pricing):
            parts = [pricing.replace(",", "")]
    try:
        prices = [float(Decimal(str(part))) for part in parts]
    except InvalidOperation:
        prices = []
    if not prices or isinstance(pricing, bool) or not all(map(math.isfinite, prices)):
        raise EnvError(f'{place}: pricing is {pricing!r:.80}; it must be like "$10.00" or "$10.00$25.00"')
    return prices[:2]
