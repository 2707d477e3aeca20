"""The WebShop part of bench_envs.py: visits of a shopper with detours, in a generated shop.

The actions are recorded first and then played alone, twice, so that choosing them does not count: once with
nothing searched or tagged before (`steps_per_second_new`), then as in training, where queries and names come
again. Times are CPU seconds of this process. The original plays some of the same visits where its checkout is
given by --original (tools/check_webshop.py says what it needs).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

from envs.base import Task
from envs.webshop import WebShopEnvironment, nouns, reward
from envs.webshop.expert import demonstrate
from envs.webshop.generate import Assortment, generate
from envs.webshop.shop import Shop, ShopFiles, load_shop
from envs.webshop.sources import task_source
from tools import bench_envs

VISITS, ORIGINAL_VISITS = 500, 10


def bench(products: int, seed: int, original: Path | None) -> dict[str, Any]:
    """Times loading, resets and steps; with `original`, the original's too."""
    with tempfile.TemporaryDirectory() as folder:
        shop_folder = Path(folder) / "shop"
        generate(shop_folder, Assortment(products), seed)
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
        "commit": bench_envs._commit(),
        "device": f"{platform.machine()}, one core of {bench_envs._cores()}",
        "versions": {
            "python": platform.python_version(),
            **{n: bench_envs._version(n) for n in ("bm25s", "spacy")},
        },
        "catalogue": f"synthetic, {products} products, human goals, spaCy's tagger",
        "load_s": round(load, 2),
        **ours,
        "memory_kib_per_environment": bench_envs.memory_per_environment(lambda i: _started(tasks[i])),
        "original": theirs,
    }


def _ours(files: ShopFiles, tasks: list[Task], visits: list[list[str]]) -> dict[str, Any]:
    for remembered in (load_shop, nouns._spacy, reward.same, reward._processed):
        remembered.cache_clear()
    shop = load_shop(files)
    index = bench_envs._seconds(lambda: shop.search)
    resets, first = _play(tasks, visits)
    _, again = _play(tasks, visits)
    steps = sum(map(len, visits))
    slowest = quantiles([len(a) / t for a, t in zip(visits, again, strict=True)], n=10)[0]
    return {
        "index_s": round(index, 2),
        "steps": steps,
        "steps_per_second": round(steps / sum(again)),  # per CPU second of one core
        "steps_per_second_slowest_decile": round(slowest),
        "steps_per_second_new": round(steps / sum(first)),
        "resets_per_second": round(len(resets) / sum(resets)),
        "reset_ms": bench_envs._milliseconds(resets),
    }


def _play(tasks: list[Task], visits: list[list[str]]) -> tuple[list[float], list[float]]:
    """Seconds of each visit's reset and of its actions."""
    environment = WebShopEnvironment()
    resets: list[float] = []
    times: list[float] = []
    for task, actions in zip(tasks, visits, strict=True):
        start = time.process_time()
        environment.reset(task)
        middle = time.process_time()
        for action in actions:
            environment.step(action)
        resets.append(middle - start)
        times.append(time.process_time() - middle)
    return resets, times


def _started(task: Task) -> WebShopEnvironment:
    environment = WebShopEnvironment()
    environment.reset(task)
    environment.step(f"search[{environment.session.goal.query}]")
    return environment


def _original(
    checkout: Path, files: Any, shop: Shop, tasks: list[Task], visits: list[list[str]]
) -> dict[str, Any]:
    from tools.webshop_original import OriginalShop

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
        "what": "its own pages and rewards, our ranking in Lucene's place",
        "load_s": round(load, 2),
        "steps": steps,
        "steps_per_second": round(steps / sum(times), 1),
        "reset_ms": bench_envs._milliseconds(resets),
    }


def main(options: argparse.Namespace) -> None:
    """Measures as bench_envs was asked to, and prints."""
    result = bench(options.products, options.seed, options.original)
    new = result["steps_per_second_new"]
    print(f"ours      {result['steps_per_second']:>10,} steps/s, {new:,} where all is new")
    original = result["original"]
    if isinstance(original, dict):
        print(f"original  {original['steps_per_second']:>10,} steps/s")
    else:
        print(f"original  {original}")
    if options.json:
        print(json.dumps(result))
