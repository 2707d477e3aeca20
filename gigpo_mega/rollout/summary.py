"""What a batch of episodes says in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gigpo_mega.algorithms.primitives import PRESETS
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.rollout.collector import CollectStats
from gigpo_mega.rollout.engines.fleet import Served
from gigpo_mega.types import Advantages, Float64, Group, Int64, RowTable
from kernels.anchor import group_ids

_PENALTY_ONLY = "advantage/penalty_only_groups"
_LARGE_SHARE = 0.5  # of the task groups of an iteration


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Success (of all and by task type), score and its spread, length, invalid actions, tokens."""
    episodes = [t for g in groups for t in g.trajectories]
    scores = [np.array([t.score for t in g.trajectories]) for g in groups]
    steps = [s for t in episodes for s in t.steps]
    by_kind: dict[str, list[bool]] = {}
    for episode in episodes:
        by_kind.setdefault(episode.task.kind, []).append(episode.success)
    return {
        "rollout/success": float(np.mean([t.success for t in episodes])),
        **{f"rollout/success/{kind}": float(np.mean(won)) for kind, won in sorted(by_kind.items())},
        "rollout/score": float(np.mean([t.score for t in episodes])),
        "rollout/score_std": float(np.mean([of.std() for of in scores])),
        "rollout/equal_groups": float(np.mean([np.ptp(of) == 0 for of in scores])),
        "rollout/length": float(np.mean([len(t.steps) for t in episodes])),
        "rollout/invalid": float(np.mean([not s.valid for s in steps])),
        "rollout/tokens": float(sum(len(s.response_ids) for s in steps)),
        "rollout/response_tokens": float(np.mean([len(s.response_ids) for s in steps])),
        "rollout/prompt_tokens": float(np.mean([len(s.prompt_ids) for s in steps])),
        "rollout/steps": float(len(steps)),
    }


def engine_metrics(stats: CollectStats) -> dict[str, float]:
    """What a collection cost: the share of prompt tokens found in the engine's prefix cache, the others per
    step, the share of prompts that were cut, episodes that were started again, groups that were dropped after
    failures, replaced for equal returns, or given up when enough were complete."""
    return {
        "rollout/cached_share": stats.cached_tokens / max(stats.prompt_tokens, 1),
        "rollout/prefilled_tokens": (stats.prompt_tokens - stats.cached_tokens) / max(stats.steps, 1),
        "rollout/truncated": stats.truncated / max(stats.steps, 1),
        "rollout/episode_retries": float(stats.retries),
        "rollout/groups_dropped": float(len(stats.dropped)),
        "rollout/groups_replaced": float(stats.refused),
        "rollout/groups_cut": float(stats.cut),
    }


def fleet_metrics(engines: Sequence[Served]) -> dict[str, float]:
    """How a collection's requests were spread over engines, and how often an episode changed its engine."""
    requests = [engine.requests for engine in engines]
    return {
        "engine/requests_min": float(min(requests)),
        "engine/requests_max": float(max(requests)),
        "engine/moves": float(sum(engine.moves for engine in engines)),
        "engine/forgotten": float(sum(engine.forgotten for engine in engines)),
        "engine/lost": float(sum(engine.lost is not None for engine in engines)),
    }


def staleness_metrics(groups: Sequence[Group], iteration: int, max_staleness: int) -> dict[str, float]:
    """Shares of the tokens by the age, in iterations, of the weights that sampled them; share of the episodes
    that several weights sampled."""
    episodes = [np.concatenate([s.versions for s in t.steps]) for g in groups for t in g.trajectories]
    age = iteration - np.concatenate(episodes)
    shares = {f"staleness/share_{k}": float((age == k).mean()) for k in range(max_staleness + 1)}
    mixed = float(np.mean([np.ptp(versions) > 0 for versions in episodes]))
    return {"staleness/mean": float(age.mean()), "staleness/mixed_episodes": mixed, **shares}


def advantage_metrics(rows: RowTable, advantages: Advantages, cfg: AdvantageConfig) -> dict[str, float]:
    """Sizes of both advantage levels, spread of steps over anchor groups, share of groups of penalties.

    An estimator without a step level has anchor groups, too: the steps that it could have compared.
    """
    if len(rows) == 0:
        return {_PENALTY_ONLY: 0.0}
    metrics = {
        _PENALTY_ONLY: _penalty_only_groups(rows, cfg),
        "advantage/episode_abs": float(np.abs(advantages.episode).mean()),
        "advantage/step_abs": float(np.abs(advantages.step).mean()),
        "advantage/step_nonzero": float(np.mean(advantages.step != 0)),
        "advantage/nonzero": float(np.mean(advantages.total != 0)),
    }
    group = advantages.step_group
    if group[0] < 0:
        group = group_ids(rows.group, rows.anchor.view(np.int64))
    counts = np.bincount(group)
    size = counts[group]
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


def penalty_warning(metrics: Mapping[str, float], cfg: AdvantageConfig) -> str:
    """One line if most task groups differ in nothing but penalties, which F_norm makes large; else ""."""
    share = metrics.get(_PENALTY_ONLY, 0.0)
    unscaled = cfg.normalization == "mean" or cfg.estimator in ("rloo", "reinforce_plus_plus_baseline")
    if share <= _LARGE_SHARE or unscaled:
        return ""
    return (
        f"warning: in {share:.0%} of the task groups all episodes score the same and only the penalty of "
        "invalid actions differs; divided by the standard deviation it counts as much as a success: set "
        "advantage.normalization mean, or advantage.invalid_penalty 0 (docs/environments/your_own.md)"
    )


def _penalty_only_groups(rows: RowTable, cfg: AdvantageConfig) -> float:
    """The share of task groups whose episodes have one score before penalties and several after."""
    _, task = np.unique(rows.group, return_inverse=True)
    _, trajectory = np.unique(rows.trajectory, return_inverse=True)
    score = np.bincount(trajectory, rows.reward).astype(np.float64)[trajectory]
    penalty: Float64 = np.where(rows.valid, 0.0, cfg.invalid_penalty)
    if PRESETS[cfg.preset].penalty == "reward":
        penalty = np.bincount(trajectory, penalty).astype(np.float64)[trajectory]
    rounding = 1e-9 * np.abs(score).max()
    return float(np.mean((_ranges(score, task) <= rounding) & (_ranges(penalty, task) > rounding)))


def _ranges(values: Float64, group: Int64) -> Float64:
    """Largest minus smallest value of each group."""
    low, high = np.full((2, group.max() + 1), [[np.inf], [-np.inf]])
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    return high - low


def evaluation_record(
    groups: Iterable[Group], iteration: int, temperature: float, split: str
) -> dict[str, object]:
    """An evaluation as it is written to disk; `standard_error` is of the success rate, as a share."""
    episodes = [t for g in groups for t in g.trajectories]
    success = float(np.mean([t.success for t in episodes]))
    return {
        "iteration": iteration,
        "episodes": len(episodes),
        "temperature": temperature,
        "split": split,
        "success": success,
        "standard_error": math.sqrt(success * (1 - success) / len(episodes)),
        "score": float(np.mean([t.score for t in episodes])),
        "length": float(np.mean([len(t.steps) for t in episodes])),
        "invalid": float(np.mean([not s.valid for t in episodes for s in t.steps])),
        "kinds": {
            kind: {"episodes": len(won), "success": float(np.mean(won))}
            for kind in sorted({t.task.kind for t in episodes})
            for won in [[t.success for t in episodes if t.task.kind == kind]]
        },
    }
