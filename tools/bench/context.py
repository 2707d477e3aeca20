"""Use of the engine's prefix cache in one context mode."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.rollout.collector import CollectStats
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.engines.servers import Servers
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.session import RolloutSession
from gigpo_mega.stack import decide
from gigpo_mega.tasks import load_tasks

RECIPE = "configs/quickstart.yaml"


def config(mode: str, folder: Path, group_size: int) -> Config:
    """The quickstart in one context mode, without cut prompts; `folder` gets its output and the games."""
    chosen = {
        "output": folder / mode,
        "prompt.context": mode,
        "environment.tasks.data": folder / "games",
        "rollout.group_size": group_size,
        "rollout.max_prompt_tokens": 2040,
    }
    flags = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
    return load_config([RECIPE, *flags], "tools/bench_context.py")


def bench(cfg: Config, games: int, repeats: int) -> dict[str, Any]:
    """Medians over `repeats` collections of `games` groups, each with an empty cache at its start."""
    tasks = load_tasks(cfg).training[:games]
    collected: list[CollectStats] = []
    model, launch = cfg.model.path or Path(), Launch(decide(), requests=cfg.rollout.concurrency)
    with (
        Servers(model, cfg.engine, cfg.output, launch) as servers,
        RolloutSession(cfg, model, servers.urls) as session,
    ):
        for _ in range(repeats):
            empty_cache = urllib.request.Request(f"{servers.urls[0]}/flush_cache", method="POST")
            urllib.request.urlopen(empty_cache, timeout=60).close()
            session.collect(Quota.of(tasks), cfg.rollout.group_size, cfg.rollout.temperature)
            collected.append(session.stats)
    return {
        "history": cfg.prompt.history if cfg.prompt.context == "window" else None,
        "turns": [stats.steps for stats in collected],
        "prompt_tokens_per_turn": round(median(s.prompt_tokens / s.steps for s in collected), 1),
        "cached_share": round(median(s.cached_tokens / s.prompt_tokens for s in collected), 4),
        "prefilled_tokens_per_turn": round(
            median((s.prompt_tokens - s.cached_tokens) / s.steps for s in collected), 1
        ),
        "turns_per_second": round(median(s.steps / s.seconds for s in collected), 1),
        "prompts_cut": sum(stats.truncated for stats in collected),
    }
