"""What an episode asks for: one goal per instruction, in WebShop's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from envs.base import EnvironmentError
from envs.webshop.catalogue import Product

GoalKind = Literal["synthetic", "human"]

ORDER_SEED = 233  # every WebShop shuffles its goals with it
TEST_GOALS = 500  # the first of them are held out
NO_LIMIT = 1_000_000.0

_LIMITS = tuple(10.0 * tens for tens in range(1, 100))


@dataclass(frozen=True, slots=True)
class Goal:
    """A wanted product: what to say to the shopper, and what the purchase is held to."""

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
    attributes: Mapping[str, Any],
    instructions: Mapping[str, Any],
    rng: Random,
) -> tuple[Goal, ...]:
    """All goals of a kind in their shuffled order; price limits are drawn from `rng`.

    `attributes` is the content of items_ins_v2 and says the synthetic goals, `instructions` that of
    items_human_ins. Instructions without attributes are left out.
    """
    if kind == "human":
        goals = [goal for product in products for goal in _human(product, instructions, rng)]
    else:
        goals = [goal for product in products for goal in _synthetic(product, attributes, rng)]
    Random(ORDER_SEED).shuffle(goals)
    return tuple(goals)


def _human(product: Product, instructions: Mapping[str, Any], rng: Random) -> Iterator[Goal]:
    for written in instructions.get(product.asin, ()):
        wanted = written["instruction_attributes"]
        if not wanted:
            continue
        limit, limit_text = _price_limit(product, rng)
        yield _goal(
            product, wanted, written["instruction"].strip(".") + limit_text,
            tuple(written["instruction_options"]), limit,
        )  # fmt: skip


def _synthetic(product: Product, attributes: Mapping[str, Any], rng: Random) -> Iterator[Goal]:
    """One goal for each combination of the product's option values; they share a price limit."""
    entry = attributes.get(product.asin, {})
    wanted, instruction = entry.get("instruction_attributes"), entry.get("instruction")
    if not wanted or instruction is None:
        return
    limit, limit_text = _price_limit(product, rng)
    names = sorted(product.options)
    for values in itertools.product(*(product.options[name] for name in names)):
        options = tuple(zip(names, values, strict=True))
        option_text = ", and ".join(f"{name}: {value}" for name, value in options)
        text = f"{instruction} with {option_text}" if options else instruction
        yield _goal(product, wanted, text + limit_text, options, limit)


def _price_limit(product: Product, rng: Random) -> tuple[float, str]:
    """The larger of two draws from the next four round prices, and how the instruction says it."""
    above = [limit for limit in _LIMITS if limit > product.price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def _goal(
    product: Product,
    wanted: Iterable[str],
    instruction: str,
    options: tuple[str | tuple[str, str], ...],
    limit: float,
) -> Goal:
    return Goal(
        product.asin, instruction, product.title, product.query, product.product_category,
        tuple(wanted), options, limit,
    )  # fmt: skip


def split_of(goals: Sequence[object], name: str, origin: str) -> range:
    """The indices of the goals of `train` or `test`; raises EnvironmentError for others or too few goals."""
    if name not in ("train", "test"):
        raise EnvironmentError(f"environment.split: WebShop has no split {name!r}; known: train, test")
    if len(goals) <= TEST_GOALS:
        raise EnvironmentError(
            f"{origin}: {len(goals)} goals, but the first {TEST_GOALS} are the test split; use more products"
        )
    return range(TEST_GOALS) if name == "test" else range(TEST_GOALS, len(goals))
