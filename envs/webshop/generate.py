"""A synthetic catalog in the three files of WebShop, in their schema.

    python -m envs.webshop.generate --output DIR --products 5000

Products have brands, attributes, options and prices; every goal can be met by the product it was made for. A
title contains everything that its goals ask for except options, as most real ones do. The texts are our own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from envs.base import EnvError
from envs.files import new_folder
from envs.program import run

ITEMS, ATTRIBUTES, INSTRUCTIONS = "items_shuffle.json", "items_ins_v2.json", "items_human_ins.json"

_BRANDS = ("Acme", "Bravado", "Corvana", "Delmora", "Elverton", "Fenwick", "Galdora", "Hartwell", "Ilmarin",
           "Jorvik", "Kestrel", "Lumo")  # fmt: skip
_STYLES = ("classic", "compact", "modern", "portable", "slim", "soft", "sturdy", "vintage")
_SIZES = {
    "clothes": ("x-small", "small", "medium", "large", "x-large", "xx-large"),
    "shoes": ("6", "7", "8", "9", "10", "11", "12"),
    "pack": ("pack of 1", "pack of 2", "pack of 4", "pack of 6", "pack of 12"),
    "length": ("3 feet", "6 feet", "10 feet", "15 feet"),
    "furniture": ("twin", "full", "queen", "king"),
}
_COLORS = ("black", "white", "blue", "navy blue", "red", "wine red", "green", "grey", "pink", "purple",
            "brown", "rose gold")  # fmt: skip
_FLAVORS = ("vanilla", "chocolate", "sea salt", "peanut butter", "lemon", "cinnamon", "berry", "original")


@dataclass(frozen=True, slots=True)
class Department:
    """Kinds of products that share categories, attributes and options."""

    path: tuple[str, ...]  # product categories above the kind's own
    kinds: tuple[str, ...]
    attributes: tuple[str, ...]
    color: str  # name of the option with colors or flavors
    values: tuple[str, ...]
    sizes: str
    prices: tuple[int, int]  # dollars


DEPARTMENTS = (
    Department(
        ("Electronics", "Accessories"),
        ("charger", "headphones", "keyboard", "speaker", "tripod", "cable", "monitor", "projector"),
        ("fast charging", "noise cancelling", "hands free", "high definition", "easy to install",
         "water resistant", "high speed", "long lasting"),
        "color", _COLORS, "length", (8, 120),
    ),
    Department(
        ("Home & Kitchen", "Furniture"),
        ("lamp", "sofa", "desk", "bookshelf", "mattress", "curtain", "rug", "ottoman"),
        ("memory foam", "easy to clean", "space saving", "solid wood", "easy to assemble", "machine washable",
         "heavy duty", "eco friendly"),
        "color", _COLORS, "furniture", (20, 300),
    ),
    Department(
        ("Clothing, Shoes & Jewelry", "Women"),
        ("dress", "hoodie", "jacket", "leggings", "shirt", "sweater", "coat", "skirt"),
        ("machine wash", "long sleeve", "quick drying", "polyester cotton", "elastic waist", "hand wash",
         "relaxed fit", "tummy control"),
        "color", _COLORS, "clothes", (10, 90),
    ),
    Department(
        ("Clothing, Shoes & Jewelry", "Shoes"),
        ("boots", "sandals", "sneakers", "slippers", "loafers", "heels"),
        ("non slip", "rubber sole", "arch support", "memory foam", "water resistant", "ankle strap",
         "open toe", "lace up"),
        "color", _COLORS, "shoes", (15, 140),
    ),
    Department(
        ("Beauty & Personal Care", "Hair Care"),
        ("shampoo", "conditioner", "serum", "toothbrush", "lotion", "mascara", "lipstick", "soap"),
        ("cruelty free", "paraben free", "sulfate free", "dry skin", "tea tree", "natural ingredients",
         "long lasting", "fragrance free"),
        "scent", ("lavender", "rose", "coconut", "mint", "citrus", "unscented"), "pack", (5, 60),
    ),
    Department(
        ("Grocery & Gourmet Food", "Snacks"),
        ("almonds", "cookies", "noodles", "tea", "coffee", "granola", "crackers", "popcorn"),
        ("gluten free", "sugar free", "low carb", "non gmo", "dairy free", "keto friendly", "high protein",
         "plant based"),
        "flavor name", _FLAVORS, "pack", (4, 50),
    ),
)  # fmt: skip


def generate(
    output: Path, products: int = 5000, kinds: int | None = None, values: int = 4, seed: int = 0
) -> None:
    """Writes the three files into the folder `output`, by `envs.files.new_folder`.

    The products are of `kinds` kinds (None: of all), an option has at most `values` values.
    """
    rng = Random(seed)
    every = [(department, kind) for department in DEPARTMENTS for kind in department.kinds]
    rng.shuffle(every)
    limits = {"products": (products, 10**6), "kinds": (kinds, len(every)), "values": (values, 10**6)}
    for name, (value, most) in limits.items():
        if value is not None and not 1 <= value <= most:
            raise EnvError(f"environment.tasks.generate.{name}: {value} is not in 1..{most}; change it")
    offered = every[:kinds]
    items: list[dict[str, Any]] = []
    attributes: dict[str, Any] = {}
    instructions: dict[str, Any] = {}
    for number in range(1, products + 1):
        department, kind = rng.choice(offered)
        item, known, asked = _product(f"B{number}", department, kind, values, rng)
        items.append(item)
        attributes[item["asin"]], instructions[item["asin"]] = known, asked
    files: dict[str, Any] = {ITEMS: items, ATTRIBUTES: attributes, INSTRUCTIONS: instructions}
    with new_folder(output) as folder:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _product(
    asin: str, department: Department, kind: str, values: int, rng: Random
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """An entry of each of the three files."""
    attributes = rng.sample(department.attributes, rng.randint(2, 4))
    titled, wanted = attributes[:2], attributes[: rng.randint(1, 2)]
    options = {
        department.color: _some(department.values, values, rng),
        "size": _some(_SIZES[department.sizes], values, rng),
    }
    item = {
        "asin": asin,
        "name": f"{rng.choice(_BRANDS)} {rng.choice(_STYLES)} {kind} {' '.join(titled)}",
        "category": department.path[0].lower(),
        "query": kind,
        "product_category": " \u203a ".join([*department.path, kind.capitalize()]),
        "full_description": f"A {rng.choice(_STYLES)} {kind} that is {' and '.join(attributes)}.",
        "small_description": [f"{attribute.capitalize()} {kind}" for attribute in attributes],
        "pricing": _pricing(department.prices, rng),
        "customization_options": {
            name: [{"is_selected": False, "value": value, "image": None} for value in offered]
            for name, offered in options.items()
        },
        "images": [f"images/{asin}.jpg"],
    }
    known = {
        "attributes": attributes,
        "instruction": f"Find me {', '.join(wanted)} {kind}",
        "instruction_attributes": wanted,
    }
    return item, known, [_instruction(kind, wanted, options, rng)]


def _some(values: Sequence[str], most: int, rng: Random) -> list[str]:
    count = rng.randint(min(2, most), most)
    return rng.sample(values, min(count, len(values)))


def _pricing(prices: tuple[int, int], rng: Random) -> str:
    """One price, or a range for one product in ten."""
    low = rng.randint(*prices)
    return f"${low}.99" if rng.random() < 0.9 else f"${low}.00${low + rng.randint(2, 9)}.00"


def _instruction(kind: str, wanted: list[str], options: dict[str, list[str]], rng: Random) -> dict[str, Any]:
    """A request like a person's: the kind, attributes and one value of each option."""
    values = [rng.choice(offered) for offered in options.values()]
    opening = rng.choice(("i am looking for a", "i need a", "please find me a", "i would like to buy a"))
    return {
        "instruction": f"{opening} {kind} that is {' and '.join(wanted)}, in {' and '.join(values)}.",
        "instruction_attributes": wanted,
        "instruction_options": values,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; raises EnvError for a size or a folder that cannot be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--products", type=int, default=5000)
    parser.add_argument("--kinds", type=int, default=None, help="kinds of products; default: all")
    parser.add_argument("--values", type=int, default=4, help="values of an option at most")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    generate(chosen.output, chosen.products, chosen.kinds, chosen.values, chosen.seed)


if __name__ == "__main__":
    run(main)
