"""Goals: one per instruction, in WebShop's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from envs.base import EnvError
from envs.webshop.catalog import Product, Table, read_texts

GoalKind = Literal["synthetic", "human"]

ORDER_SEED = 233  # every WebShop shuffles its goals with it
TEST_GOALS = 500  # the first of them are held out
NO_LIMIT = 1_000_000.0

_LIMITS = tuple(10.0 * tens for tens in range(1, 100))


@dataclass(frozen=True, slots=True)
class Goal:
    """A requested product: the instruction, and the criteria of the purchase."""

    asin: str
    instruction: str
    name: str
    query: str
    product_category: str
    attributes: tuple[str, ...]
    options: tuple[str | tuple[str, str], ...]  # values, or (option, value) in synthetic goals
    price_upper: float  # dollars


def read_goals(
    kind: GoalKind,
    products: Iterable[Product],
    attributes: Table,
    instructions: Table,
    rng: Random,
) -> tuple[Goal, ...]:
    """All goals of a kind in their shuffled order; price limits are drawn from `rng`.

    `attributes` is the content of items_ins_v2, the source of synthetic goals; `instructions` is that of
    items_human_ins. Instructions without attributes are skipped. Raises EnvError for a malformed one.
    """
    if kind == "human":
        goals = [goal for product in products for goal in _human(product, instructions, rng)]
    else:
        goals = [goal for product in products for goal in _synthetic(product, attributes, rng)]
    Random(ORDER_SEED).shuffle(goals)
    return tuple(goals)


def _human(product: Product, instructions: Table, rng: Random) -> Iterator[Goal]:
    place = instructions.place(product.asin)
    entries = instructions.entries.get(product.asin) or []
    if not isinstance(entries, list) or not all(isinstance(written, dict) for written in entries):
        raise EnvError(f"{place}: {entries!r:.80} is not a list of instructions; copy WebShop's file again")
    for written in entries:
        wanted = read_texts(written, "instruction_attributes", place)
        if not wanted:
            continue
        options = read_texts(written, "instruction_options", place)
        text = _instruction(written, place)
        limit, limit_text = _price_limit(product, rng)
        yield _goal(product, wanted, text.strip(".") + limit_text, options, limit)


def _synthetic(product: Product, attributes: Table, rng: Random) -> Iterator[Goal]:
    """One goal for each combination of the product's option values; they share a price limit."""
    entry, place = attributes.fields(product.asin), attributes.place(product.asin)
    wanted = read_texts(entry, "instruction_attributes", place)
    if not wanted or entry.get("instruction") is None:
        return
    instruction = _instruction(entry, place)
    limit, limit_text = _price_limit(product, rng)
    names = sorted(product.options)
    for values in itertools.product(*(product.options[name] for name in names)):
        options = tuple(zip(names, values, strict=True))
        option_text = ", and ".join(f"{name}: {value}" for name, value in options)
        text = f"{instruction} with {option_text}" if options else instruction
        yield _goal(product, wanted, text + limit_text, options, limit)


def _instruction(written: Mapping[str, Any], place: str) -> str:
    text = written.get("instruction")
    if not isinstance(text, str):
        raise EnvError(f"{place}: instruction is {text!r:.80}; it must be text")
    return text


def _price_limit(product: Product, rng: Random) -> tuple[float, str]:
    """The larger of two draws from the next four round prices, and its text in the instruction."""
    above = [limit for limit in _LIMITS if limit > product.price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def _goal(
    product: Product,
    wanted: tuple[str, ...],
    instruction: str,
    options: tuple[str | tuple[str, str], ...],
    limit: float,
) -> Goal:
    return Goal(
        product.asin, instruction, product.title, product.query, product.product_category,
        wanted, options, limit,
    )  # fmt: skip


def split_indices(goals: Sequence[object], name: str, origin: str) -> range:
    """The indices of the goals of `train` or `test`; raises EnvError for another split or too few goals."""
    if name not in ("train", "test"):
        raise EnvError(f"environment.split: WebShop has no split {name!r}; known: train, test")
    if len(goals) <= TEST_GOALS:
        raise EnvError(
            f"{origin}: {len(goals)} goals, but the first {TEST_GOALS} are the test split; use more products"
        )
    return range(TEST_GOALS) if name == "test" else range(TEST_GOALS, len(goals))
