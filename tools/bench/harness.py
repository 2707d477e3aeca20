"""What a step of an episode costs the process that plays it, apart from engine and environment."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from envs.base import Task
from gigpo_mega.config import (
    Config,
    EngineConfig,
    EnvironmentConfig,
    ModelConfig,
    PromptConfig,
    RolloutConfig,
)
from gigpo_mega.rollout.pieces import PieceEncoder
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.session import RolloutSession
from gigpo_mega.rollout.tokenizer_files import TokenizerFiles
from gigpo_mega.tasks import load_tasks
from gigpo_mega.telemetry.provenance import provenance
from gigpo_mega.types import Group

ROOT = Path(__file__).resolve().parents[2]
SERVER = "gigpo_mega.rollout.workers.server"


WORKERS = 2  # of the measurement with rollout workers


def bench(model: Path, folder: Path, groups: int, concurrency: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of this process per step of ALFWorld episodes by the chat template of `model`; medians.

    Also of each process where rollout workers play.
    """
    command = [sys.executable, "-m", "tools.bench.fake_server", str(model)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        cfg = _config(model, folder, f"http://127.0.0.1:{int(server.stdout.readline())}", concurrency)
        tasks = load_tasks(cfg).training[: groups + 1]
        costs: list[float] = []
        played: dict[int, Group] = {}
        with RolloutSession(cfg, model, cfg.engine.urls) as session:
            session.collect(Quota.of(tasks[:1]), 8, 1.0)  # imports, caches
            for _ in range(repeats):
                start = time.process_time()
                played = session.collect(Quota.of(tasks[1:]), 8, 1.0)
                costs.append((time.process_time() - start) / session.stats.steps)
            stats = session.stats
        shared = _with_workers(cfg, model, tasks, repeats)
        steps = [s for group in played.values() for t in group.trajectories for s in t.steps]
        server.communicate()
    return {
        "benchmark": "rollout",
        **provenance("tokenizers", "aiohttp"),
        "prompt_tokens": round(stats.prompt_tokens / stats.steps, 1),
        "response_tokens": round(stats.response_tokens / stats.steps, 1),
        "concurrency": concurrency,
        "steps": stats.steps,
        "cpu_seconds": costs,
        "steps_per_second": round(1 / median(costs), 1),
        "workers": shared,
        "encoding_ms": encoding(model, [step.prompt_ids.tolist() for step in steps], repeats),
    }


def _with_workers(cfg: Config, model: Path, tasks: Sequence[Task], repeats: int) -> dict[str, Any]:
    """CPU milliseconds per step of the leader and of all workers together, which play for it; medians."""
    cfg = replace(cfg, rollout=replace(cfg.rollout, workers=WORKERS))
    cost: dict[str, list[float]] = {"leader": [], "workers": []}
    with RolloutSession(cfg, model, cfg.engine.urls) as session:
        session.collect(Quota.of(tasks[:WORKERS]), 8, 1.0)
        for _ in range(repeats):
            before = _seconds()
            session.collect(Quota.of(tasks[1:]), 8, 1.0)
            for name, seconds in _seconds().items():
                cost[name].append(1000 * (seconds - before[name]) / session.stats.steps)
    found = {name: median(values) for name, values in cost.items()}
    return {
        "count": WORKERS,
        "leader_ms": round(found["leader"], 4),
        "workers_ms": round(found["workers"], 4),
        "steps_per_second_of_a_worker": round(1000 / found["workers"], 1),
        "workers_that_a_leader_serves": round(found["workers"] / found["leader"], 1),
    }


def _seconds() -> dict[str, float]:
    """CPU seconds so far of this process, and of the rollout workers that it has started."""
    children = [p for p in psutil.Process().children() if SERVER in p.cmdline()]
    times = [process.cpu_times() for process in children]
    return {"leader": time.process_time(), "workers": sum(spent.user + spent.system for spent in times)}


def encoding(model: Path, prompts: Sequence[list[int]], repeats: int) -> dict[str, float]:
    """CPU milliseconds in which a prompt is encoded, by the tokenizer itself and by its pieces; medians."""
    fast = TokenizerFiles.read(model).fast
    pieces = PieceEncoder.of(fast)
    assert pieces is not None, "a tokenizer that is cut by a known pattern"
    texts = [fast.decode(ids, skip_special_tokens=False) for ids in prompts]
    ways = {
        "tokenizer": lambda text: fast.encode(text, add_special_tokens=False).ids,
        "pieces": pieces.encode,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, encode in ways.items():
            start = time.process_time()
            for text in texts:
                encode(text)
            seconds[name].append((time.process_time() - start) / len(texts))
    return {name: round(1000 * median(found), 4) for name, found in seconds.items()}


def _config(model: Path, folder: Path, url: str, concurrency: int) -> Config:
    rooms = {"games": {"train": 64, "valid_unseen": 1}, "seed": 1, "receptacles": 48, "objects": 40}
    return Config(
        environment=EnvironmentConfig(
            name="alfworld", max_steps=20, tasks={"data": str(folder), "generate": rooms}
        ),
        engine=EngineConfig(url=url),
        model=ModelConfig(path=model),
        prompt=PromptConfig(dialogue="chat", history=8),
        rollout=RolloutConfig(concurrency=concurrency, max_prompt_tokens=2048),
    )
