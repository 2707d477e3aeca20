"""Seconds of grouping search results by similarity, on one thread, and of plain difflib on some of them."""

from __future__ import annotations

import time
from difflib import SequenceMatcher
from random import Random
from typing import Any

import numpy as np

from gigpo_mega.algorithms.anchors import similar_groups
from gigpo_mega.telemetry.provenance import provenance
from gigpo_mega.types import Int64

ROWS_PER_TASK = 20  # 5 episodes of 4 steps, as in the official script of search QA
THRESHOLD = 0.9
_PASSAGES_PER_TASK = 12  # found by the queries of a task; 3 are shown
_PASSAGE = 570  # characters
_TEXT = """
the of and in to a was is for on as by with he at from his it an are were which this also be had has not
first their after who its new one or but they been two other when all during into time may more years over
only city some world would where later up such used many can state about national out known university most
then three part united between second under including team these war became since south than made use her
him season while being there both called family number year
"""
_WORDS = _TEXT.split()


def make_texts(tasks: int, seed: int = 0) -> tuple[list[str], Int64]:
    """Observations of 1.9 KB as of search QA, and their tasks: three passages each, many shared."""
    rng, texts = Random(seed), list[str]()
    for _ in range(tasks):
        passages = [_passage(rng) for _ in range(_PASSAGES_PER_TASK)]
        for _ in range(ROWS_PER_TASK):
            found = sorted(rng.sample(range(len(passages)), 3), key=lambda place: place + 2 * rng.random())
            shown = "".join(f"Doc {i}: {passages[place]}\n" for i, place in enumerate(found, start=1))
            texts.append(f"<information>{shown}</information>")
    return texts, np.repeat(np.arange(tasks), ROWS_PER_TASK)


def _passage(rng: Random) -> str:
    text = f"{_word(rng).title()} {_word(rng).title()}\n"
    while len(text) < _PASSAGE:
        sentence = " ".join(_word(rng) for _ in range(rng.randint(8, 24)))
        text += f"{sentence[0].upper()}{sentence[1:]}. "
    return text.strip()


def _word(rng: Random) -> str:
    kind, word = rng.random(), rng.choice(_WORDS)
    return str(rng.randint(1800, 2024)) if kind < 0.04 else word.title() if kind < 0.16 else word


def plain_groups(texts: list[str], group: Int64) -> list[int]:
    """The official loop: every text against the first member of every cluster of its task, by difflib."""
    founders: dict[int, list[tuple[str, int]]] = {}
    ids: list[int] = []
    for task, text in zip(group.tolist(), texts, strict=True):
        known = founders.setdefault(task, [])
        alike = (i for first, i in known if SequenceMatcher(None, text, first).ratio() >= THRESHOLD)
        if (found := next(alike, None)) is None:
            found = max(ids, default=-1) + 1
            known.append((text, found))
        ids.append(found)
    return ids


def measure_similarity(tasks: int, compared: int) -> dict[str, Any]:
    """The record: CPU seconds for `tasks` tasks, and those of plain difflib, measured on `compared` tasks."""
    texts, group = make_texts(tasks)
    part = compared * ROWS_PER_TASK
    start = time.process_time()
    ids = similar_groups(texts, group, THRESHOLD)
    seconds = time.process_time() - start
    start = time.process_time()
    plain = plain_groups(texts[:part], group[:part])
    plain_seconds = time.process_time() - start
    return {
        "benchmark": "similarity",
        "tasks": tasks,
        "rows": len(texts),
        "mean_characters": float(np.mean([len(text) for text in texts])),
        "threshold": THRESHOLD,
        "groups": int(ids.max()) + 1,
        "cpu_seconds": seconds,
        "difflib_tasks": compared,
        "difflib_same_groups": plain == ids[:part].tolist(),
        "difflib_cpu_seconds_of_all_tasks": plain_seconds * tasks / compared,
        **provenance("numpy"),
    }
