"""What a batch of episodes says in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gigpo_mega.rollout.collector import CollectStats
from gigpo_mega.types import Advantages, Group, RowTable, Trajectory


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Success, score, length, invalid-action share and sampled tokens of `groups`."""
    episodes = [t for g in groups for t in g.trajectories]
    steps = [s for t in episodes for s in t.steps]
    return {
        "rollout/success": float(np.mean([t.success for t in episodes])),
        "rollout/score": float(np.mean([t.score for t in episodes])),
        "rollout/length": float(np.mean([len(t.steps) for t in episodes])),
        "rollout/invalid": float(np.mean([not s.valid for s in steps])),
        "rollout/tokens": float(sum(len(s.response_ids) for s in steps)),
        "rollout/prompt_tokens": float(np.mean([len(s.prompt_ids) for s in steps])),
        "rollout/steps": float(len(steps)),
    }


def engine_metrics(stats: CollectStats) -> dict[str, float]:
    """What a collection cost the engine: the share of prompt tokens found in its prefix cache, the others per
    step, and the share of prompts that were cut."""
    return {
        "rollout/cached_share": stats.cached_tokens / max(stats.prompt_tokens, 1),
        "rollout/prefilled_tokens": (stats.prompt_tokens - stats.cached_tokens) / max(stats.steps, 1),
        "rollout/truncated": stats.truncated / max(stats.steps, 1),
    }


def advantage_metrics(rows: RowTable, advantages: Advantages) -> dict[str, float]:
    """Sizes of both advantage levels, and how the steps spread over anchor groups."""
    metrics = {
        "advantage/episode_abs": float(np.abs(advantages.episode).mean()),
        "advantage/step_abs": float(np.abs(advantages.step).mean()),
    }
    if len(rows) == 0 or advantages.step_group[0] < 0:
        return metrics
    counts = np.bincount(advantages.step_group)
    size = counts[advantages.step_group]
    edges = {"1": (1, 1), "2_3": (2, 3), "4_7": (4, 7), "8_plus": (8, len(rows))}
    shares = {f"anchor/size_{k}": float(((size >= a) & (size <= b)).mean()) for k, (a, b) in edges.items()}
    return (
        metrics
        | shares
        | {
            "anchor/mean_size": float(counts.mean()),
            "anchor/singletons": float((size == 1).mean()),
        }
    )


def evaluation_record(
    groups: Sequence[Group], step: int, temperature: float, split: str
) -> dict[str, object]:
    """An evaluation as it is written to disk; `standard_error` is of the success rate, as a share."""
    episodes = [t for g in groups for t in g.trajectories]
    success = float(np.mean([t.success for t in episodes]))
    return {
        "step": step,
        "episodes": len(episodes),
        "temperature": temperature,
        "split": split,
        "success": success,
        "standard_error": math.sqrt(success * (1 - success) / len(episodes)),
        "score": float(np.mean([t.score for t in episodes])),
        "length": float(np.mean([len(t.steps) for t in episodes])),
        "invalid": float(np.mean([not s.valid for t in episodes for s in t.steps])),
        "kinds": {kind: _kind([t for t in episodes if t.task.kind == kind]) for kind in _kinds(episodes)},
    }


def _kinds(episodes: Sequence[Trajectory]) -> list[str]:
    return sorted({t.task.kind for t in episodes})


def _kind(episodes: Sequence[Trajectory]) -> dict[str, float]:
    return {"episodes": len(episodes), "success": float(np.mean([t.success for t in episodes]))}
