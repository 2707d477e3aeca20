"""Seconds and memory of `estimate`, on one thread."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from gigpo_mega.algorithms.advantage import BUILT_IN, estimate
from gigpo_mega.algorithms.anchors import anchor_key
from gigpo_mega.algorithms.primitives import PRESETS, anchor_groups, relative, returns, step_columns
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.telemetry.provenance import provenance
from gigpo_mega.types import RowTable, Step

EPISODES_PER_TASK = 8
MAX_STEPS = 50
STATES_PER_TASK = 60


def make_table(rows: int, seed: int = 0) -> RowTable:
    """A table of exactly `rows` rows: half of the episodes succeed with 10, every tenth action is invalid.

    Its steps hold what estimators read of them, and no tokens but one.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, MAX_STEPS + 1, size=rows)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), rows)) + 1]
    lengths[-1] -= lengths.sum() - rows
    trajectory = np.repeat(np.arange(len(lengths)), lengths)
    last = np.cumsum(lengths) - 1
    step = np.arange(rows) - np.repeat(last + 1 - lengths, lengths)
    group = trajectory // EPISODES_PER_TASK
    state = np.minimum(rng.geometric(0.05, size=rows), STATES_PER_TASK) * (step > 0)
    reward = np.zeros(rows)
    reward[last] = 10.0 * rng.integers(0, 2, size=len(last))
    seen = zip(state.tolist(), group.tolist(), strict=True)
    keys = [anchor_key(f"state {index}", f"task {task}") for index, task in seen]
    later = [*keys[1:], keys[0]]  # an episode that is over leads to the next one's start
    ids, valid = np.zeros(1, dtype=np.int32), rng.random(rows) >= 0.1
    steps = tuple(
        Step(ids, ids, ids.astype(np.float32), 0.0, True, key, ids, success=won, next_anchor=after)
        for key, won, after in zip(keys, (reward > 0).tolist(), later, strict=True)
    )
    anchor = np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64).reshape(-1, 2)
    return RowTable(group, trajectory, step, reward, valid, anchor, steps)


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Wall-clock seconds of each of `repeats` runs after one to warm up, sorted."""
    work()
    taken: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return sorted(taken)


def measure(rows: RowTable, repeats: int, estimator: str = "gigpo") -> dict[str, Any]:
    """The record: median seconds of `repeats` runs of `estimate`, and of each part of GiGPO."""
    cfg, paper = AdvantageConfig(estimator=estimator, backend="numpy"), PRESETS["paper"]
    whole = seconds(lambda: estimate(rows, cfg), repeats)
    steps = step_columns(rows, cfg)
    (score, discounted), groups = returns(steps, cfg.gamma, paper), anchor_groups(rows, steps, cfg)
    task, anchor = paper.task_rule(cfg), paper.anchor_rule(cfg)
    parts: dict[str, Callable[[], object]] = {
        "grouping": lambda: anchor_groups(rows, steps, cfg),
        "scores and returns": lambda: returns(steps, cfg.gamma, paper),
        "episode level": lambda: relative(score, steps.group, task, paper.task_members(steps)),
        "step level": lambda: relative(discounted, groups, anchor),
    }
    return {
        "benchmark": "advantage",
        "estimator": estimator,
        "rows": len(rows),
        "tasks": int(rows.group.max()) + 1,
        "trajectories": int(rows.trajectory.max()) + 1,
        "step_groups": int(groups.max()) + 1,
        "dtype": "float64",
        "threads": 1,
        "repeats": repeats,
        "seconds": statistics.median(whole),
        "quantiles": {"min": whole[0], "p10": whole[repeats // 10], "p90": whole[repeats * 9 // 10]},
        "parts": {name: statistics.median(seconds(work, repeats)) for name, work in parts.items()},
        **provenance("numpy"),
    }


def peak_bytes(rows: RowTable, estimator: str) -> int:
    """Most bytes that `estimate` has allocated at once beside its rows, of arrays and of objects."""
    cfg = AdvantageConfig(estimator=estimator, backend="numpy")
    estimate(rows, cfg)  # what the first call imports and keeps is not an iteration's
    tracemalloc.start()
    try:
        estimate(rows, cfg)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_memory(rows: RowTable) -> dict[str, Any]:
    """The record: the peak of every built-in estimator on the same rows, in bytes."""
    return {
        "benchmark": "advantage_memory",
        "rows": len(rows),
        "peak_bytes": {name: peak_bytes(rows, name) for name in BUILT_IN},
        **provenance("numpy"),
    }
