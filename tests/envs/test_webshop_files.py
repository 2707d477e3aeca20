"""WebShop's files as people have them: prices, options and attributes, usable or refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from envs.base import EnvError
from envs.webshop.catalog import NO_ATTRIBUTES, NO_PRICE, Product
from envs.webshop.goals import GoalKind
from envs.webshop.shop import Shop, ShopFiles, load_shop

ITEM: dict[str, Any] = {
    "asin": "B1", "name": "Lamp", "category": "home", "query": "lamp", "product_category": "Home",
    "full_description": "", "small_description": ["bright"], "pricing": "$10.00",
    "customization_options": {"color": [{"value": "red"}]},
}  # fmt: skip
KNOWN: dict[str, Any] = {
    "attributes": ["bright"], "instruction": "find a lamp", "instruction_attributes": ["bright"],
}  # fmt: skip
ASKED: dict[str, Any] = {
    "instruction": "find a lamp.", "instruction_attributes": ["bright"], "instruction_options": ["red"],
}  # fmt: skip


def shop(
    folder: Path,
    item: dict[str, Any] | None = None,
    known: Any = KNOWN,
    asked: Any = None,
    drop: str = "",
) -> Shop:
    entry = {key: value for key, value in (ITEM | (item or {})).items() if key != drop}
    contents = {"items": [entry], "attributes": {"B1": known}, "instructions": {"B1": asked}}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    items, attributes, instructions = (str(folder / f"{name}.json") for name in contents)
    load_shop.cache_clear()
    kind: GoalKind = "synthetic" if asked is None else "human"
    return load_shop(ShopFiles(items, attributes, instructions, goals=kind, nouns="light"))


def product(folder: Path, drop: str = "", **item: Any) -> Product:
    (found,) = shop(folder, item, drop=drop).products
    return found


@pytest.mark.parametrize(
    ("pricing", "low", "high", "text"),
    [
        ("$10.99", 10.99, 10.99, "$10.99"),
        ("$10.00$25.50", 10.0, 25.5, "$10.0 to $25.5"),
        ("$10.00 - $25.50", 10.0, 25.5, "$10.0 to $25.5"),
        ("$25.50$10.00", 10.0, 25.5, "$25.5 to $10.0"),
        ("$1,234.50", 1234.5, 1234.5, "$1234.5"),
        ("10.99", 10.99, 10.99, "$10.99"),
        (" 1,234 ", 1234.0, 1234.0, "$1234.0"),
        (10.99, 10.99, 10.99, "$10.99"),
        (7, 7.0, 7.0, "$7.0"),
        ("", NO_PRICE, NO_PRICE, "$100.0"),
        (None, NO_PRICE, NO_PRICE, "$100.0"),
        (math.nan, NO_PRICE, NO_PRICE, "$100.0"),
        ("Currently unavailable", NO_PRICE, NO_PRICE, "$100.0"),
    ],
)
def test_a_price_is_a_number_a_range_or_absent(
    tmp_path: Path, pricing: Any, low: float, high: float, text: str
) -> None:
    found = product(tmp_path, pricing=pricing)
    assert low <= found.price <= high
    assert found.price_text == text


@pytest.mark.parametrize(
    "pricing",
    ["10,99", "\u20ac10,99", "10.99 - 25.00", "$10.99.5", "$", "$ten", [10.0], {"a": 1}, True, math.inf],
)
def test_a_price_that_cannot_be_read_is_refused_with_its_product(tmp_path: Path, pricing: Any) -> None:
    with pytest.raises(EnvError, match=r"items\.json: product B1: pricing is [^\n]+$"):
        product(tmp_path, pricing=pricing)


def test_a_product_may_lack_price_options_and_bullets(tmp_path: Path) -> None:
    assert product(tmp_path, drop="pricing").price == NO_PRICE
    for options in (None, {}, "", {"color": None}):
        assert product(tmp_path, customization_options=options).options == {}
    assert product(tmp_path, drop="customization_options").options == {}
    assert product(tmp_path, small_description=None).bullets == ()
    assert product(tmp_path, small_description=["a", None]).bullets == ("a",)
    assert product(tmp_path, small_description="a").bullets == ("a",)


@pytest.mark.parametrize(
    "item",
    [
        {"customization_options": {"color": [{"value": None}]}},
        {"customization_options": {"color": [{}]}},
        {"customization_options": {"color": ["red"]}},
        {"customization_options": {"color": "red"}},
        {"customization_options": ["red"]},
        {"name": None},
        {"full_description": math.nan},
        {"query": ["lamp"]},
    ],
)
def test_a_malformed_product_is_refused_by_name(tmp_path: Path, item: dict[str, Any]) -> None:
    with pytest.raises(EnvError, match=r"items\.json: product B1[ :][^\n]+$"):
        product(tmp_path, **item)


@pytest.mark.parametrize("asin", [None, {}, ["B1"]])
def test_an_entry_without_an_asin_is_refused_with_its_place(tmp_path: Path, asin: object) -> None:
    with pytest.raises(EnvError, match=r"items\.json: entry 0 is not a product"):
        product(tmp_path, asin=asin)


@pytest.mark.parametrize("known", [{}, {"attributes": None}, None])
def test_a_product_may_be_absent_from_the_attributes_or_have_none(tmp_path: Path, known: Any) -> None:
    found = shop(tmp_path, known=known)
    assert found.products[0].attributes == NO_ATTRIBUTES
    assert found.goals == ()


@pytest.mark.parametrize(
    "known",
    [
        {"attributes": "bright"},
        {"attributes": [None]},
        [],
        KNOWN | {"instruction_attributes": "bright"},
        KNOWN | {"instruction": 3},
    ],
)
def test_malformed_attributes_are_refused_with_file_and_product(tmp_path: Path, known: Any) -> None:
    with pytest.raises(EnvError, match=r"attributes\.json: product B1: [^\n]+$"):
        shop(tmp_path, known=known)


@pytest.mark.parametrize(
    "asked",
    [
        {"instruction": "a"},
        [None],
        [ASKED | {"instruction": None}],
        [ASKED | {"instruction_attributes": "bright"}],
        [ASKED | {"instruction_options": "red"}],
        [ASKED | {"instruction_options": [None]}],
    ],
)
def test_a_malformed_instruction_is_refused_with_file_and_product(tmp_path: Path, asked: Any) -> None:
    with pytest.raises(EnvError, match=r"instructions\.json: product B1: [^\n]+$"):
        shop(tmp_path, asked=asked)


def test_an_instruction_may_have_no_options_or_no_attributes(tmp_path: Path) -> None:
    plain = ASKED | {"instruction_options": []}
    (goal,) = shop(tmp_path, asked=[plain, ASKED | {"instruction_attributes": []}]).goals
    assert (goal.attributes, goal.options) == (("bright",), ())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16"])
def test_a_byte_order_mark_is_read_and_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    shop(tmp_path)
    text = json.dumps([ITEM | {"name": "caf\xe9"}], ensure_ascii=False)
    (tmp_path / "items.json").write_bytes(text.encode(encoding))
    files = ShopFiles(str(tmp_path / "items.json"), str(tmp_path / "attributes.json"), nouns="light")
    load_shop.cache_clear()
    if encoding == "utf-8-sig":
        assert load_shop(files).products[0].title == "caf\xe9"
    else:
        with pytest.raises(EnvError, match=r"items\.json: not a complete JSON file"):
            load_shop(files)
