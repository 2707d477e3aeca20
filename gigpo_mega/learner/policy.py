"""Policy iteration on one table of rows: score, clip, step (Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gigpo_mega.algorithms.objective import aggregation, policy_loss
from gigpo_mega.batching import MicroBatch, updates
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.learner.update import Learner, Report, UpdateStats
from gigpo_mega.types import Advantages, Float32, RowTable

_METRICS = {
    "reference_kl": "loss/kl",
    "entropy": "loss/entropy",
    "approx_kl": "loss/approx_kl",
    "clip_fraction": "loss/clip_fraction",
    "dual_clip_fraction": "loss/dual_clip_fraction",
}


_LARGEST_GAP = {"float32": 1e-3, "bfloat16": 0.1}  # where engine.max_logprob_gap is none


class LogprobMismatch(UserError):
    """The engine sampled with other weights than the learner holds; the policy was not touched."""


def improve(
    learner: Learner,
    rows: RowTable,
    advantages: Advantages,
    cfg: Config,
    step: int,
    on_update: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Update the policy on one iteration's rows; returns metrics, the same on every rank.

    Old and reference log-probabilities of all updates are scored before the first. `engine/logprob_gap_*`
    compares the engine's log-probabilities with the learner's in the first update, where the weights are
    still those that the engine sampled with. Raises LogprobMismatch, before anything is updated, where its
    mean exceeds `engine.max_logprob_gap`.
    """
    chosen = np.arange(len(rows), dtype=np.int64)
    if cfg.batch.skip_zero and cfg.objective.kl_coef == 0 and cfg.objective.entropy_coef == 0:
        chosen = np.flatnonzero(advantages.total).astype(np.int64)
    rng = np.random.default_rng([cfg.seed, step])
    plan = [learner.pack(rows.steps, piece) for piece in updates(chosen, cfg.batch, rng)]
    engine = [[_behaviour(rows, batch) for batch in batches] for batches in plan]
    old = engine if cfg.objective.old_logprob == "engine" else [learner.score(batches) for batches in plan]
    reference: Sequence[list[Float32] | None] = [None] * len(plan)
    if cfg.objective.kl_coef:
        reference = [learner.score(batches, reference=True) for batches in plan]
    stats: list[UpdateStats] = []
    for i, batches in enumerate(plan):
        sampled = engine[i] if i == 0 else None
        loss = _Surrogate(cfg, advantages.total, old[i], sampled, reference[i])
        stats.append(learner.update(batches, loss, partial(_check_gap, cfg)))
        on_update(i + 1, len(plan))
    learner.synchronize()
    return _summary(stats) | {"update/rows": float(len(chosen))}


def _behaviour(rows: RowTable, batch: MicroBatch) -> Float32:
    return np.concatenate([rows.steps[r].logprobs for r in batch.rows])


@dataclass(frozen=True, slots=True)
class _Surrogate:
    """The `Loss` of one update."""

    cfg: Config
    advantage: Float32  # [N] by row of the table
    old: list[Float32]  # per token, by micro-batch; so are the next two
    engine: list[Float32] | None
    reference: list[Float32] | None

    def __call__(
        self, index: int, batch: MicroBatch, logprob: Tensor, entropy: Tensor
    ) -> tuple[Tensor, Report]:
        def column(values: Float32) -> Tensor:
            return torch.from_numpy(values).to(logprob.device)

        objective = self.cfg.objective
        horizon = self.cfg.rollout.max_response_tokens
        weight, count = aggregation(objective.aggregation, batch.lengths, horizon)
        total, sums = policy_loss(
            logprob,
            column(self.old[index]),
            column(batch.spread(self.advantage)),
            column(weight),
            objective,
            ref_logprob=column(self.reference[index]) if self.reference else None,
            entropy=entropy,
            lengths=torch.from_numpy(batch.lengths).to(logprob.device),
            backend="reference" if self.cfg.kernels.backend == "reference" else "auto",
        )
        losses = {"loss/policy": sums.pop("policy_loss")}
        sums = {_METRICS[name]: value for name, value in sums.items()}
        if self.engine is None:
            return total, Report(sums, losses=losses, count=count)
        gap = (logprob.detach() - column(self.engine[index])).abs()
        sums["engine/logprob_gap_mean"] = gap.sum()
        return total, Report(sums, {"engine/logprob_gap_max": gap.max()}, losses, count)


def _check_gap(cfg: Config, means: dict[str, float]) -> None:
    gap = means.get("engine/logprob_gap_mean", 0.0)
    limit = cfg.engine.max_logprob_gap or _LARGEST_GAP[cfg.model.dtype]
    if not gap <= limit:
        raise LogprobMismatch(
            f"the engine's log-probs are {gap:.2g} from the learner's, more than "
            f"engine.max_logprob_gap {limit}: its weights are not the learner's; "
            "restart with --resume to push them anew"
        )


class Cloning:
    """Behaviour cloning's `Loss`: the negative log-likelihood of the tokens of each row, weighted per token.

    `weights[row]` is float32 [R], one weight for each response token of the row.
    """

    def __init__(self, weights: Sequence[Float32]) -> None:
        self.weights = weights

    def __call__(
        self, index: int, batch: MicroBatch, logprob: Tensor, entropy: Tensor
    ) -> tuple[Tensor, Report]:
        weight = torch.from_numpy(np.concatenate([self.weights[r] for r in batch.rows])).to(logprob.device)
        action = (weight == 1).to(logprob.dtype)
        sums = {"loss/action": -(action * logprob.detach()).sum(), "loss/action_tokens": action.sum()}
        return -(weight * logprob).sum(), Report(sums)


def _summary(stats: list[UpdateStats]) -> dict[str, float]:
    """Token-weighted means and peaks over the updates; the gap stands on the first update alone."""
    if not stats:
        return {}
    tokens = np.array([s.tokens for s in stats], dtype=np.float64)
    summary: dict[str, float] = {}
    for name in stats[0].peaks:
        summary[name] = max(s.peaks[name] for s in stats if name in s.peaks)
    for name in stats[0].means:
        seen = [(s.means[name], t) for s, t in zip(stats, tokens, strict=True) if name in s.means]
        summary[name] = float(sum(v * t for v, t in seen) / sum(t for _, t in seen))
    return summary | {
        "optimizer/grad_norm": float(np.mean([s.grad_norm for s in stats])),
        "optimizer/lr": stats[-1].lr,
        "optimizer/updates": float(len(stats)),
    }
