"""Visits of a scripted shopper with detours to a generated shop.

The actions are recorded first and then played twice, so that choosing them is not timed: first with empty
caches (`steps_per_second_new`), then as in training, where queries and names are repeated. The original
plays some of the same visits if --original names its checkout (tools/check_webshop.py says what it needs).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

from envs.base import Task
from envs.webshop import WebShopEnvironment, noun_extraction, reward
from envs.webshop.expert import demonstrate
from envs.webshop.generate import generate
from envs.webshop.shop import Shop, ShopFiles, load_shop
from envs.webshop.sources import task_source
from gigpo_mega.telemetry.provenance import provenance
from tools.bench.environments.measure import memory_per_environment, milliseconds, play, seconds

VISITS, ORIGINAL_VISITS = 500, 10


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Time loading, resets and steps, and those of the original if `original` names its checkout."""
    products, seed, original = options.products, options.seed, options.original
    with tempfile.TemporaryDirectory() as folder:
        shop_folder = Path(folder) / "shop"
        generate(shop_folder, products, seed=seed)
        source = task_source(str(shop_folder), goals="human", seed=seed)
        start = time.process_time()
        shop = load_shop(source.files)
        load = time.process_time() - start
        tasks = source.tasks("train")
        tasks = [tasks[i * len(tasks) // VISITS] for i in range(VISITS)]
        visits = [[action for _, action in demonstrate(task, seed, 0.25).turns] for task in tasks]
        ours = _ours(source.files, tasks, visits)
        theirs = _original(original, source.files, shop, tasks, visits) if original else "no --original given"
    return {
        "env": "webshop",
        **provenance("bm25s", "spacy"),
        "catalog": f"synthetic, {products} products, human goals, spaCy's tagger",
        "load_s": round(load, 2),
        **ours,
        "memory_kib_per_environment": memory_per_environment(lambda i: _started(tasks[i])),
        "original": theirs,
    }


def _ours(files: ShopFiles, tasks: list[Task], visits: list[list[str]]) -> dict[str, Any]:
    for remembered in (load_shop, noun_extraction._spacy, reward.same, reward._processed):
        remembered.cache_clear()
    shop = load_shop(files)
    index = seconds(lambda: shop.search)
    environment, episodes = WebShopEnvironment(), list(zip(tasks, visits, strict=True))
    first, again = play(environment, episodes), play(environment, episodes)
    rates = [count / taken for count, taken in zip(again.counts, again.actions, strict=True)]
    return {
        "index_s": round(index, 2),
        "steps": sum(again.counts),
        "steps_per_second": round(again.steps_per_second),
        "steps_per_second_slowest_decile": round(quantiles(rates, n=10)[0]),
        "steps_per_second_new": round(first.steps_per_second),
        "resets_per_second": round(first.resets_per_second),
        "reset_ms": milliseconds(first.resets),
    }


def _started(task: Task) -> WebShopEnvironment:
    environment = WebShopEnvironment()
    environment.reset(task)
    environment.step(f"search[{environment.session.goal.query}]")
    return environment


def _original(
    checkout: Path, files: Any, shop: Shop, tasks: list[Task], visits: list[list[str]]
) -> dict[str, Any]:
    from tools.oracles.webshop_original import OriginalShop

    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        original = OriginalShop(checkout, files, shop)
    load = time.process_time() - start
    times: list[float] = []
    resets: list[float] = []
    for task, actions in list(zip(tasks, visits, strict=True))[:ORIGINAL_VISITS]:
        start = time.process_time()
        original.reset(json.loads(task.source)["goal"])
        middle = time.process_time()
        for action in actions:
            original.step(action)
        resets.append(middle - start)
        times.append(time.process_time() - middle)
    steps = sum(map(len, visits[:ORIGINAL_VISITS]))
    return {
        "what": "its own pages and rewards, with our ranking instead of Lucene",
        "load_s": round(load, 2),
        "steps": steps,
        "steps_per_second": round(steps / sum(times), 1),
        "reset_ms": milliseconds(resets),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The result as text."""
    new = result["steps_per_second_new"]
    yield f"ours      {result['steps_per_second']:>10,} steps/s, {new:,} with empty caches"
    original = result["original"]
    speed = f"{original['steps_per_second']:>10,} steps/s" if isinstance(original, dict) else original
    yield f"original  {speed}"
