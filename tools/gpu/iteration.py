"""One whole iteration of a run: its own server, environments, rollout, update and push."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gigpo_mega.coldstart.demonstrations import demonstrate
from gigpo_mega.coldstart.vocabulary import train_tokenizer
from gigpo_mega.config import Config
from gigpo_mega.config.load import load_config
from gigpo_mega.telemetry.metrics import read_rows
from gigpo_mega.train import train
from gigpo_mega.weights import live
from tools.gpu.setup import Setup, Wrong

_ROOT = Path(__file__).resolve().parents[2]
_SOKOBAN = _ROOT / "configs" / "sokoban" / "small.yaml"
_STAGES = ("push", "rollout", "advantage", "update", "total")


def iteration(setup: Setup) -> dict[str, Any]:
    """Seconds by stage of two iterations of Sokoban on random weights; raises Wrong for one that is missing.

    The run itself refuses a gap of log-probabilities, and a push that is lost. The second iteration has the
    weights that the first one pushed.
    """
    groups, size = (2, 2) if setup.small else (8, 8)
    cfg = load_config(
        [
            str(_SOKOBAN), "--iterations", "2", "--model.dtype", setup.dtype,
            "--model.path", str(setup.folder / "policy"), "--output", str(setup.folder / "run"),
            "--environment.max_steps", "3", "--environment.tasks", "{train: 16, test: 4}",
            "--rollout.groups", str(groups), "--rollout.group_size", str(size), "--evaluation.episodes", "4",
            "--objective.kl_coef", "0.01", "--coldstart.games", "8", "--checkpoint.export", "false",
        ],
        "tools.gpu iteration",
    )  # fmt: skip
    _write_policy(setup, cfg)
    begin = time.perf_counter()
    train(cfg)
    seconds = time.perf_counter() - begin
    rows = read_rows(cfg.output / "metrics.jsonl")
    if [row["iteration"] for row in rows] != [0, 1]:
        raise Wrong(f"iterations {[row['iteration'] for row in rows]} are recorded, not 0 and 1")
    return {
        "seconds": seconds,
        "stages": [{name: row[f"time/{name}"] for name in _STAGES} for row in rows],
        "gap": [row["engine/logprob_gap_mean"] for row in rows],
        "tokens": [row["rollout/tokens"] for row in rows],
    }


def _write_policy(setup: Setup, cfg: Config) -> None:
    """Random weights of the shape, with a tokenizer of the rooms' words."""
    source = setup.describe(setup.folder / "model")
    texts = [text for game in demonstrate(cfg) for seen, action in game.turns for text in (seen.text, action)]
    train_tokenizer(texts, 512, source)
    with setup.layout() as layout:
        learner = setup.learner(layout)
        assert cfg.model.path is not None
        live.save(learner.policy, learner.shape, layout, source, cfg.model.path)
