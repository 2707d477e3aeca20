"""Padding, balance and speed of micro-batches, packed and padded.

    python tools/bench_batches.py            # writes docs/benchmarks/bench_batches.json

The rows are as uneven as an agent's: prompts of a log-normal length (median 665 tokens), answers of 20 to 200
tokens. Padding and balance are of 8 data-parallel ranks and Qwen2.5-1.5B; speed is of a small policy on this
machine, one optimizer update after the other in the three forms. Padding to the longest row of the update is
what trainers do that hold it as one tensor.

What it would save to compute identical prompts of a group once is counted on groups of 8 ALFWorld episodes
(generated games) under the paper's recipe: the expert plays, and does something else instead with a
probability, high as early in training or low as late in it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.base import lookup
from envs.dialogue import choose
from gigpo_mega import options
from gigpo_mega.batching import MicroBatch, Split, pack
from gigpo_mega.config import BatchConfig, Config
from gigpo_mega.learner import parallel
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.policy import Cloning
from gigpo_mega.learner.update import Learner
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.types import Int64, Step
from tools import make_smollm2

RECORD = Path(__file__).parents[1] / "docs/benchmarks/bench_batches.json"
COMMON: dict[str, Any] = {"family": "qwen2", "rope_theta": 1e6, "norm_epsilon": 1e-6, "max_positions": 8192,
                          "tied": True, "qkv_bias": True}  # fmt: skip
QWEN = ModelShape(
    vocab=151936, hidden=1536, ffn=8960, layers=28, heads=12, kv_heads=2, head_dim=128, **COMMON
)
SMALL = ModelShape(vocab=1024, hidden=96, ffn=256, layers=3, heads=4, kv_heads=2, head_dim=24, **COMMON)
FORMS = ("packed", "padded by length", "padded to the longest")
RANKS, ROWS, TOKENS, ROUNDS = 8, 256, 16384, 3
GROUPS, ANSWER = 16, 110  # tokens: the mean of `agent_steps`


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


def played(detour: float, folder: Path) -> Iterator[list[tuple[int, ...]]]:
    """The prompts of each group; `folder` holds a model, whose tokenizer counts, and gets the games."""
    recipe = RECORD.parents[2] / "configs/alfworld/qwen2.5-1.5b.yaml"
    cfg = options.load([str(recipe)], "tools/bench_batches.py")
    kind, limit = lookup(cfg.environment.name), cfg.environment.max_steps
    source = kind.tasks(data=str(folder / "games"), generate={"games": {"train": GROUPS}, "seed": 0})
    dialogue, tokenizer = choose(kind, cfg.environment.dialogue), Tokenizer(folder / "model")
    builder = PromptBuilder(cfg.environment, dialogue, tokenizer, cfg.rollout.max_prompt_tokens)
    expert, given = kind.demonstrate, cfg.environment.options
    assert expert is not None
    for task in source.tasks("train"):
        prompts: list[tuple[int, ...]] = []
        for seed in range(cfg.rollout.group_size):
            turns = expert(task, seed=seed, detour=detour, max_steps=limit, options=given).turns
            episode = builder.start(turns[0][0])
            for (_, action), (following, _) in pairwise(turns):
                prompts.append(tuple(episode.ids()))
                episode.advance(action, following)
            prompts.append(tuple(episode.ids()))
        yield prompts


def identical(detour: float, folder: Path) -> dict[str, float]:
    """Rows whose prompt a row before them in their group has, and the work that sharing it would save."""
    groups = list(played(detour, folder))
    lengths = np.array([len(ids) for group in groups for ids in group])
    once = np.array([len(ids) for group in groups for ids in set(group)])
    work = QWEN.cost.of(lengths + ANSWER, np.full(len(lengths), ANSWER)).sum()
    all_prompts, distinct = (QWEN.cost.of(part, np.zeros_like(part)).sum() for part in (lengths, once))
    return {
        "detour": detour,
        "rows": len(lengths),
        "prompt_tokens": round(float(lengths.mean())),
        "identical_percent": round(100 * (1 - len(once) / len(lengths)), 1),
        "saved_percent": round(100 * float((all_prompts - distinct) / work), 1),
    }


def main() -> None:
    """Measure, print, record."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_smollm2.convert(make_smollm2.find_gguf(), Path(folder) / "model", torch.bfloat16)
        sharing = [identical(detour, Path(folder)) for detour in (0.9, 0.5, 0.1)]
    for numbers in sharing:
        print("identical prompts     ", numbers)
    measured = {name: shares(name, agent_steps(ROWS)) for name in FORMS}
    for name, tokens in speed(agent_steps(ROWS // 4)).items():
        measured[name]["tokens_per_cpu_second"] = tokens
    for name, numbers in measured.items():
        print(f"{name:22}", numbers)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    record = {"command": "python tools/bench_batches.py", "commit": commit, "torch": torch.__version__,
              "ranks": RANKS, "rows": ROWS, "microbatch_tokens": TOKENS, "forms": measured,
              "answer_tokens": ANSWER, "identical_prompts": sharing}  # fmt: skip
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
