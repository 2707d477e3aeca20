"""Padding, balance and speed of micro-batches in three forms, and the work that identical prompts repeat."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.dialogue import choose
from envs.registry import lookup
from gigpo_mega.batching import MicroBatch, Split, pack
from gigpo_mega.coldstart.clone import cloning_loss
from gigpo_mega.config import BatchConfig, Config
from gigpo_mega.config.load import load_config
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner.learner import Learner
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.shape import ModelShape
from gigpo_mega.telemetry.provenance import provenance
from gigpo_mega.types import Bool, Float32, Int64, Step
from tools import smollm2

COMMON: dict[str, Any] = {"family": "qwen2", "rope_theta": 1e6, "norm_epsilon": 1e-6, "max_positions": 8192,
                          "tied": True, "qkv_bias": True}  # fmt: skip
QWEN = ModelShape(
    vocab=151936, hidden=1536, ffn=8960, layers=28, heads=12, kv_heads=2, head_dim=128, **COMMON
)
SMALL = ModelShape(vocab=1024, hidden=96, ffn=256, layers=3, heads=4, kv_heads=2, head_dim=24, **COMMON)
FORMS = ("packed", "padded by length", "padded to the longest")
RANKS, ROWS, TOKENS, ROUNDS = 8, 256, 16384, 3
GROUPS, ANSWER = 16, 110  # groups of episodes; tokens of an answer, the mean of `agent_steps`
RECIPE = Path(__file__).resolve().parents[2] / "configs/alfworld/qwen2.5-1.5b.yaml"


def agent_steps(count: int) -> list[Step]:
    """Steps with prompts of a log-normal length (median 665 tokens) and answers of 20 to 200 tokens."""
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(6.5, 0.6, count), 100, 4000).astype(int)
    answers = rng.integers(20, 200, count)
    return [
        Step(rng.integers(0, 1000, p).astype(np.int32), rng.integers(0, 1000, r).astype(np.int32),
             np.zeros(r, np.float32), 0.0, True, bytes(16), np.zeros(r, np.int32))
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
    """Padding in percent of all columns, and how far the costliest rank is above the mean, in percent."""
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
    layout = layouts.initialize(Config().parallel, seed=0)
    learner = Learner(Config(), SMALL, layout)
    used = sum(len(s.prompt_ids) + len(s.response_ids) - 1 for s in steps)
    batches: dict[str, list[tuple[MicroBatch, tuple[Float32, Bool]]]] = {}
    for name in FORMS:
        packed = form(name, steps, np.arange(len(steps)), SMALL, Split())
        counts = [int(batch.lengths.sum()) for batch in packed]
        targets = [(np.ones(count, np.float32), np.ones(count, np.bool_)) for count in counts]
        batches[name] = list(zip(packed, targets, strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(ROUNDS):
        for name in FORMS:
            start = time.process_time()
            learner.update(batches[name], cloning_loss)
            seconds[name].append(time.process_time() - start)
    layouts.shutdown()
    return {name: round(used / statistics.median(seconds[name])) for name in FORMS}


def played(detour: float, folder: Path) -> Iterator[list[tuple[int, ...]]]:
    """The prompts of each group as token ids; `folder` holds a model with a tokenizer, and gets the games."""
    cfg = load_config([str(RECIPE)], "tools/bench_batches.py")
    kind, limit = lookup(cfg.environment.name), cfg.environment.max_steps
    source = kind.tasks(data=str(folder / "games"), generate={"games": {"train": GROUPS}, "seed": 0})
    dialogue, tokenizer = choose(kind, cfg.prompt.dialogue), Tokenizer(folder / "model")
    builder = PromptBuilder(cfg.prompt, dialogue, tokenizer, cfg.rollout.max_prompt_tokens)
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
    """Share of rows that repeat a prompt of their group, and the work that computing it once would save."""
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


def bench() -> dict[str, Any]:
    """The record, with the tokenizer of SmolLM2 and on one thread."""
    torch.set_num_threads(1)
    made = provenance("torch")
    with tempfile.TemporaryDirectory() as folder:
        smollm2.convert(smollm2.find_gguf(), Path(folder) / "model", torch.bfloat16)
        sharing = [identical(detour, Path(folder)) for detour in (0.9, 0.5, 0.1)]
    forms = {name: shares(name, agent_steps(ROWS)) for name in FORMS}
    for name, tokens in speed(agent_steps(ROWS // 4)).items():
        forms[name]["tokens_per_cpu_second"] = tokens
    return {
        **made,
        "ranks": RANKS,
        "rows": ROWS,
        "microbatch_tokens": TOKENS,
        "forms": forms,
        "answer_tokens": ANSWER,
        "identical_prompts": sharing,
    }
