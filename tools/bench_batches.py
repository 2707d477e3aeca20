"""Padding, balance and speed of micro-batches, packed and padded.

    python tools/bench_batches.py            # writes docs/benchmarks/bench_batches.json

The rows are as uneven as an agent's: prompts of a log-normal length (median 665 tokens), answers of 20 to 200
tokens. Padding and balance are of 8 data-parallel ranks and Qwen2.5-1.5B; speed is of a small policy on this
machine, one optimizer update after the other in the three forms. Padding to the longest row of the update is
what trainers do that hold it as one tensor.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gigpo_mega.batching import MicroBatch, Split, pack
from gigpo_mega.config import BatchConfig, Config
from gigpo_mega.learner import parallel
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.policy import Cloning
from gigpo_mega.learner.update import Learner
from gigpo_mega.types import Int64, Step

RECORD = Path(__file__).parents[1] / "docs/benchmarks/bench_batches.json"
COMMON: dict[str, Any] = {"family": "qwen2", "rope_theta": 1e6, "norm_epsilon": 1e-6, "max_positions": 8192,
                          "tied": True, "qkv_bias": True}  # fmt: skip
QWEN = ModelShape(
    vocab=151936, hidden=1536, ffn=8960, layers=28, heads=12, kv_heads=2, head_dim=128, **COMMON
)
SMALL = ModelShape(vocab=1024, hidden=96, ffn=256, layers=3, heads=4, kv_heads=2, head_dim=24, **COMMON)
FORMS = ("packed", "padded by length", "padded to the longest")
RANKS, ROWS, TOKENS, ROUNDS = 8, 256, 16384, 3


def agent_steps(count: int) -> list[Step]:
    """Rows of seed 0."""
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(6.5, 0.6, count), 100, 4000).astype(int)
    answers = rng.integers(20, 200, count)
    return [
        Step(rng.integers(0, 1000, p).astype(np.int32), rng.integers(0, 1000, r).astype(np.int32),
             np.zeros(r, np.float32), 0.0, True, bytes(16), 0)
        for p, r in zip(prompts, answers, strict=True)
    ]  # fmt: skip


def form(name: str, steps: list[Step], rows: Int64, shape: ModelShape, split: Split) -> list[MicroBatch]:
    """The micro-batches of one rank."""
    if name != FORMS[2]:
        cfg = BatchConfig(microbatch_tokens=TOKENS, packed=name == FORMS[0])
        return pack(steps, rows, cfg, split, shape.cost)
    longest = max(len(s.prompt_ids) + len(s.response_ids) - 1 for s in steps)
    mine = np.array_split(rows, split.ranks)[split.rank]
    each = TOKENS // longest
    wide = Split(columns=longest)
    cfg = BatchConfig(microbatch_tokens=longest * each, packed=False)
    parts = (mine[i : i + each] for i in range(0, len(mine), each))
    return [batch for part in parts for batch in pack(steps, part, cfg, wide)]


def cost(batch: MicroBatch, shape: ModelShape) -> float:
    """Multiply-adds, padding included."""
    return float(shape.cost.of(np.diff(batch.starts).repeat(len(batch.tokens)), batch.lengths).sum())


def shares(name: str, steps: list[Step]) -> dict[str, float]:
    """Padding in percent of all columns; how much longer the costliest rank works than the mean."""
    ranks = [form(name, steps, np.arange(len(steps)), QWEN, Split(RANKS, rank)) for rank in range(RANKS)]
    columns = sum(batch.tokens.size for part in ranks for batch in part)
    used = sum(len(s.prompt_ids) + len(s.response_ids) - 1 for s in steps)
    work = np.array([sum(cost(batch, QWEN) for batch in part) for part in ranks])
    return {
        "padding_percent": round(100 * (1 - used / columns), 2),
        "imbalance_percent": round(100 * float(work.max() / work.mean() - 1), 2),
        "work": round(float(work.max()) * RANKS / 1e12, 1),
    }


def speed(steps: list[Step]) -> dict[str, float]:
    """Tokens per second of CPU time of each form, median of `ROUNDS` updates; the forms take turns."""
    layout = parallel.initialize(Config().parallel, seed=0)
    learner = Learner(Config(), SMALL, layout)
    loss = Cloning([np.ones(len(s.response_ids), np.float32) for s in steps])
    used = sum(len(s.prompt_ids) + len(s.response_ids) - 1 for s in steps)
    batches = {name: form(name, steps, np.arange(len(steps)), SMALL, Split()) for name in FORMS}
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(ROUNDS):
        for name in FORMS:
            start = time.process_time()
            learner.update(batches[name], loss)
            seconds[name].append(time.process_time() - start)
    parallel.shutdown()
    return {name: round(used / statistics.median(seconds[name])) for name in FORMS}


def main() -> None:
    """Measure, print, record."""
    torch.set_num_threads(1)
    measured = {name: shares(name, agent_steps(ROWS)) for name in FORMS}
    for name, tokens in speed(agent_steps(ROWS // 4)).items():
        measured[name]["tokens_per_cpu_second"] = tokens
    for name, numbers in measured.items():
        print(f"{name:22}", numbers)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    record = {"command": "python tools/bench_batches.py", "commit": commit, "torch": torch.__version__,
              "ranks": RANKS, "rows": ROWS, "microbatch_tokens": TOKENS, "forms": measured}  # fmt: skip
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
