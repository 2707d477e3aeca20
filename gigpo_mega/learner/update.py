"""The policy update of one iteration: score, clip, step (Eq. 9)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gigpo_mega.algorithms.objective import policy_loss
from gigpo_mega.batching import MicroBatch
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.learner.learner import Learner, NonFiniteUpdate, Report, UpdateStats
from gigpo_mega.learner.samples import hand_back, outline
from gigpo_mega.learner.targets import Targets, plan_updates
from gigpo_mega.learner.transfer import on_device
from gigpo_mega.telemetry.progress import stage
from gigpo_mega.types import Advantages, Float32, Int32, Int64, RowTable

_MASKED = "loss/rollout_masked"
_METRICS = {  # sums over tokens, and their means: over those that no mask leaves out, but for `_MASKED`
    "reference_kl_sum": "loss/kl",
    "entropy_sum": "loss/entropy",
    "approx_kl_sum": "loss/approx_kl",
    "clipped_tokens": "loss/clip_fraction",
    "dual_clipped_tokens": "loss/dual_clip_fraction",
    "rollout_is_sum": "loss/rollout_is",
    "rollout_is_truncated": "loss/rollout_is_truncated",
    "rollout_masked": _MASKED,
}
_GAP, _SHARE = "gap/{}", "share/{}"  # of the tokens of an age in iterations, as parts of all
# If weights.max_logprob_gap is null. In float32 the recorded runs have up to 4e-7 (docs/benchmarks). In
# bfloat16 nothing was measured yet: its limit is a guess at what rounding in all layers may add up to.
LARGEST_GAP = {"float32": 1e-3, "bfloat16": 0.1}


class UnusableGroups(UserError):
    """Nothing more may be learned from an iteration's groups; a resumed run samples them again."""


class LogprobMismatch(UnusableGroups):
    """The engine sampled with other weights than the learner holds; the policy was not touched."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of an iteration's update when it is over."""

    metrics: dict[str, float]  # the same on every rank
    logprobs: Float32 | None  # the learner's of all rows' response tokens, one row after the other; leader's


def update_policy(
    learner: Learner, rows: RowTable, advantages: Advantages, cfg: Config, iteration: int
) -> Learned:
    """Improve the policy on the leader's rows of `iteration`.

    The `rows` of the other ranks are not read; the `advantages` are needed on every rank.

    The learner's log-probabilities are those in the denominator of the ratio, or, if these are the engine's,
    those that the first update of a row computed; NaN where it was not computed, or its update was skipped.

    `engine/logprob_gap_*` compares the engine's log-probabilities with the learner's in the first update, and
    after one that is skipped in the next: until then the weights are those that the engine sampled with. If
    rollouts run ahead, it is of the tokens that these weights sampled, and `staleness/logprob_gap_K` of those
    that are K iterations older.
    Raises LogprobMismatch, before anything is updated, if the mean exceeds `weights.max_logprob_gap`;
    UnusableGroups for an update that is not finite, as `optimizer.nonfinite` says.
    """
    known = outline(learner.layout, rows)
    plan = plan_updates(learner, known, rows, advantages, cfg, iteration)
    progress = iteration / max(cfg.iterations - 1, 1)
    stats: list[UpdateStats] = []
    scored: dict[int, Float32] = {}
    skipped = in_a_row = 0
    with stage("update", len(plan), "updates", quiet=not learner.layout.leader) as bar:
        for number, batches in enumerate(plan, start=1):
            loss, accept = partial(surrogate, cfg, compare=not stats), partial(_check_gap, cfg)
            try:
                stats.append(learner.update(batches, loss, accept, progress))
                in_a_row = 0
                if number <= len(plan) // cfg.batch.epochs:
                    scored |= _by_row([batch for batch, _ in batches], stats[-1].kept)
            except NonFiniteUpdate as error:
                skipped, in_a_row = skipped + 1, in_a_row + 1
                where = f"iteration {iteration}, update {number} of {len(plan)}"
                said = f"{where}: {error}; the policy was not changed by it; {known.described}"
                if cfg.optimizer.nonfinite == "stop" or in_a_row > cfg.optimizer.max_skips:
                    advice = "lower optimizer.lr, look at these rewards, or set optimizer.nonfinite skip"
                    raise UnusableGroups(f"{said}; {advice}; --resume samples the groups again") from None
                if learner.layout.leader:
                    sys.stderr.write(f"{said}; skipped\n")
            bar.advance()
    learner.synchronize()
    learner.iteration = iteration + 1
    counts = {"update/rows": float(len(known)), "optimizer/skipped": float(skipped)}
    return Learned(_summary(stats) | counts, hand_back(learner.layout, known, scored))


def _by_row(batches: Sequence[MicroBatch], kept: Sequence[Float32]) -> dict[int, Float32]:
    """What was kept of each row's tokens; nothing of fillers, and nothing where nothing was kept."""
    found: dict[int, Float32] = {}
    for batch, values in zip(batches, kept, strict=bool(kept)):
        if batch.weight:
            parts = np.split(values, np.cumsum(batch.lengths)[:-1])
            found |= zip(batch.rows.tolist(), parts, strict=True)
    return found


def surrogate(
    cfg: Config, targets: Targets, logprob: Tensor, entropy: Tensor, compare: bool
) -> tuple[Tensor, Report]:
    """The policy loss of a micro-batch as a sum over its tokens; a `Loss` once `cfg` and `compare` are bound.

    With `compare` it also reports how far the engine's log-probabilities are from the learner's, for tokens
    of each age. It keeps the learner's, as `Learned` has them.
    """

    def column(values: Float32 | Int32 | Int64) -> Tensor:
        return on_device(values, logprob.device)

    present = logprob.detach()
    old = present if targets.old is None else column(targets.old)
    total, sums = policy_loss(
        logprob,
        old,
        column(targets.advantage),
        column(targets.weight),
        cfg.objective,
        ref_logprob=None if targets.reference is None else column(targets.reference),
        entropy=entropy,
        lengths=column(targets.lengths),
        sampled_logprob=column(targets.engine) if cfg.objective.compares_sampling else None,
        backend="reference" if cfg.kernels.backend == "reference" else "auto",
    )
    losses = {"loss/policy": sums.pop("surrogate_sum")}
    sums = {_METRICS[name]: value for name, value in sums.items()}
    peaks: dict[str, Tensor] = {}
    if compare:
        gap = (present - column(targets.engine)).abs()
        by_age, largest = _by_age(gap, column(targets.staleness), cfg.rollout.max_staleness)
        sums |= by_age
        peaks["engine/logprob_gap_max"] = largest
    kept = present if cfg.objective.old_logprob == "engine" else old
    return total, Report(sums, peaks, losses, targets.count, kept)


def _by_age(gap: Tensor, staleness: Tensor, oldest: int) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of `gap` [n] and counts of tokens, by age in iterations; the largest gap of age 0."""
    staleness, sums = staleness.clamp(0, oldest), dict[str, Tensor]()
    for age in range(oldest + 1):
        of_age = (staleness == age).to(gap.dtype)
        sums[_GAP.format(age)], sums[_SHARE.format(age)] = (gap * of_age).sum(), of_age.sum()
    return sums, torch.where(staleness == 0, gap, 0.0).max()


def _check_gap(cfg: Config, measured: dict[str, float]) -> None:
    gap = _gaps(measured).get("engine/logprob_gap_mean", 0.0)
    limit = cfg.weights.max_logprob_gap or LARGEST_GAP[cfg.model.dtype]
    # As the loss is not finite either, this update is refused in any case, and the next one is compared.
    undecided = not math.isfinite(gap) and not math.isfinite(measured["loss/total"])
    if not (gap <= limit or undecided):
        raise LogprobMismatch(
            f"the engine's log-probs are {gap:.2g} from the learner's, more than "
            f"weights.max_logprob_gap {limit}: its weights are not the learner's; "
            "restart with --resume to push them again"
        )


def _gaps(means: Mapping[str, float]) -> dict[str, float]:
    """`means` with the gap of the tokens of each age, where there are any, in place of sums and shares."""
    found, age = dict(means), 0
    while (share := found.pop(_SHARE.format(age), None)) is not None:
        total = found.pop(_GAP.format(age))
        if share:
            found[f"staleness/logprob_gap_{age}" if age else "engine/logprob_gap_mean"] = total / share
        age += 1
    return found


def _summary(stats: Sequence[UpdateStats]) -> dict[str, float]:
    """Means weighted by what they are means of, and peaks, over updates; the gap is of the first alone.

    What the loss measures is over the tokens that no mask leaves out.
    """
    if not stats:
        return {}
    first, summary = stats[0], dict[str, float]()
    for name in first.peaks:
        summary[name] = max(s.peaks[name] for s in stats if name in s.peaks)
    for name in (*first.losses, *first.means):
        by_count = name in first.losses
        seen = [(s.losses[name], s.count) if by_count else (s.means[name], s.tokens)
                for s in stats if by_count or name in s.means]  # fmt: skip
        summary[name] = sum(mean * weight for mean, weight in seen) / sum(weight for _, weight in seen)
    left = 1.0 - summary.get(_MASKED, 0.0)
    for name in [name for name in _METRICS.values() if name in summary and name != _MASKED]:
        mean = summary.pop(name)
        if left:  # else no token has a part in it
            summary[name] = mean / left
    return _gaps(summary) | {
        "optimizer/grad_norm": float(np.mean([s.grad_norm for s in stats])),
        "optimizer/lr": stats[-1].lr,
        "optimizer/updates": float(len(stats)),
    }
