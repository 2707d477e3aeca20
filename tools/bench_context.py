"""Measure the prefix cache in both context modes, window and append, with the real engine on the same games.

    python tools/bench_context.py --json        # the last line is one JSON object

Groups of episodes on the quickstart's games, played by its policy. Its prompts are not cut here, whatever the
mode. The cache is emptied before each of the `--repeats` collections, as a push of weights empties it before
each iteration. Turns per second are wall-clock, so another program on the machine counts: see load_average.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gigpo_mega import options  # noqa: E402
from gigpo_mega.config import Config  # noqa: E402
from gigpo_mega.errors import run_main  # noqa: E402
from gigpo_mega.rollout.collector import CollectStats  # noqa: E402
from gigpo_mega.rollout.session import RolloutSession  # noqa: E402
from gigpo_mega.tasks import load_tasks  # noqa: E402
from tools import bench_envs  # noqa: E402

MODES = ("window", "append")


def bench(cfg: Config, games: int, repeats: int) -> dict[str, Any]:
    """The median of `repeats` collections of `games` groups with `cfg`."""
    tasks, _ = load_tasks(cfg)
    collected: list[CollectStats] = []
    with RolloutSession(cfg, cfg.model.path or Path(), cfg.output) as session:
        for _ in range(repeats):
            _empty_cache(session.url)
            session.collect(tasks[:games], cfg.rollout.group_size, cfg.rollout.temperature)
            collected.append(session.stats)
    return {
        "history": cfg.environment.history if cfg.environment.context == "window" else None,
        "turns": [stats.steps for stats in collected],
        "prompt_tokens_per_turn": _median(collected, lambda s: s.prompt_tokens / s.steps, 1),
        "cached_share": _median(collected, lambda s: s.cached_tokens / s.prompt_tokens, 4),
        "prefilled_tokens_per_turn": _median(
            collected, lambda s: (s.prompt_tokens - s.cached_tokens) / s.steps, 1
        ),
        "turns_per_second": _median(collected, lambda s: s.steps / s.seconds, 1),
        "prompts_cut": sum(stats.truncated for stats in collected),
    }


def _median(collected: list[CollectStats], value: Any, digits: int) -> float:
    return round(median(map(value, collected)), digits)


def _empty_cache(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/flush_cache", method="POST"), timeout=60):
        pass


def _config(mode: str, folder: Path, group_size: int) -> Config:
    chosen = {
        "output": folder / mode,
        "environment.context": mode,
        "environment.tasks.data": folder / "games",
        "rollout.group_size": group_size,
        "rollout.max_prompt_tokens": 2040,
    }
    flags = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
    return options.load([str(ROOT / "configs/quickstart.yaml"), *flags], "tools/bench_context.py")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    chosen = parser.parse_args()
    os.chdir(ROOT)  # the configuration names its policy from there
    with tempfile.TemporaryDirectory() as folder:
        modes = {
            mode: bench(_config(mode, Path(folder), chosen.group_size), chosen.games, chosen.repeats)
            for mode in MODES
        }
    for mode, found in modes.items():
        print(f"{mode:7} {found['cached_share']:6.1%} of prompt tokens cached, "
              f"{found['prefilled_tokens_per_turn']} prefilled per turn, "
              f"{found['turns_per_second']} turns/s")  # fmt: skip
    if chosen.json:
        record = {
            "what": "ALFWorld games of configs/quickstart.yaml, its policy, SGLang",
            "commit": bench_envs._commit(),
            "device": bench_envs._cores(),
            "load_average": round(os.getloadavg()[0], 1),
            "versions": {name: bench_envs._version(name) for name in ("sglang", "torch")},
            "games": chosen.games,
            "group_size": chosen.group_size,
            "repeats": chosen.repeats,
            **modes,
        }
        print(json.dumps(record))


if __name__ == "__main__":
    run_main(main)
