"""Which rows each optimizer update computes, and what the policy loss reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist

from gigpo_mega.algorithms.objective import aggregation
from gigpo_mega.batching import MicroBatch, Share, updates
from gigpo_mega.config import Config
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.samples import Outline, Samples, hand_out
from gigpo_mega.types import Advantages, Float32, Int32, Int64, RowTable


@dataclass(frozen=True, slots=True)
class Targets:
    """What the policy loss reads of a micro-batch: arrays over its n response tokens, q rows."""

    advantage: Float32  # [n]
    old: Float32 | None  # [n] log-probabilities in the denominator of the ratio; None: the present ones
    reference: Float32 | None  # [n] log-probabilities of the reference policy
    engine: Float32  # [n] log-probabilities as sampled
    staleness: Int32  # [n] iterations that the weights which sampled a token are older than the present ones
    weight: Float32  # [n] of a token in the sum of losses
    count: int  # these rows' part of the loss's denominator
    lengths: Int64  # [q] response tokens of each row


@dataclass(frozen=True, slots=True)
class _Piece:
    """The rows of one update."""

    rows: Int64  # that are computed
    skipped: Int64  # that count in the denominator alone
    dealt: list[list[Share]]  # micro-batches of `rows`, by data-parallel rank


def plan_updates(
    learner: Learner, known: Outline, rows: RowTable, advantages: Advantages, cfg: Config, iteration: int
) -> list[list[tuple[MicroBatch, Targets]]]:
    """This rank's micro-batches of every update of `iteration`, each beside its targets.

    The tokens come from the leader's `rows`, of which `known` is the outline. Old and reference
    log-probabilities are scored here, with the present weights; not if the policy that scores is the one that
    learns, which is so in an only update.
    """
    pieces = _pieces(learner, known, advantages, cfg, iteration)
    again = _scored_besides(learner, known, pieces, cfg)
    samples = hand_out(learner.layout, known, rows, _wanted([*pieces, *again], learner.layout.data))
    batches = [learner.build(samples, piece.dealt) for piece in pieces]
    besides = [learner.build(samples, piece.dealt) for piece in again]
    nothing: list[list[Float32 | None]] = [[None] * len(made) for made in batches]
    engine = [[_sampled(samples, batch) for batch in made] for made in batches]
    stale = [[iteration - _versions(samples, batch) for batch in made] for made in batches]
    reference = _scores(learner, batches, besides, cfg, reference=True) if cfg.objective.kl_coef else nothing
    if cfg.objective.old_logprob == "engine":
        old: Sequence[Sequence[Float32 | None]] = engine
    else:
        alone = len(pieces) == 1
        old = nothing if alone else _scores(learner, batches, besides, cfg, reference=False)
    plan: list[list[tuple[MicroBatch, Targets]]] = []
    columns = zip(pieces, batches, old, reference, engine, stale, strict=True)
    for piece, made, olds, references, sampled, ages in columns:
        # Skipped rows count once, with the first micro-batch of the first data-parallel rank.
        uncounted = piece.skipped if learner.layout.data_rank == 0 else piece.skipped[:0]
        labeled: list[tuple[MicroBatch, Targets]] = []
        for batch, o, r, e, age in zip(made, olds, references, sampled, ages, strict=True):
            weight, count = _aggregated(cfg, batch.lengths)
            count += _aggregated(cfg, known.responses[uncounted])[1]
            uncounted = uncounted[:0]
            advantage = batch.spread(advantages.total)
            labeled.append((batch, Targets(advantage, o, r, e, age, weight, count, batch.lengths)))
        plan.append(labeled)
    return plan


def _pieces(
    learner: Learner, known: Outline, advantages: Advantages, cfg: Config, iteration: int
) -> list[_Piece]:
    """All rows cut into updates, `batch.epochs` times; `batch.skip_zero` skips those of advantage 0."""
    skip = cfg.batch.skip_zero and cfg.objective.kl_coef == 0 and cfg.objective.entropy_coef == 0
    rng = np.random.default_rng([cfg.seed, iteration])
    pieces: list[_Piece] = []
    for piece in updates(np.arange(len(known), dtype=np.int64), cfg.batch, rng):
        computed = (advantages.total[piece] != 0) | (not skip)
        if not computed.any():
            computed[0] = True  # Adam moves in an update of zeros too: one row stands for all
        pieces.append(_piece(learner, known, piece[computed], piece[~computed]))
    return pieces


def _piece(learner: Learner, known: Outline, rows: Int64, skipped: Int64) -> _Piece:
    return _Piece(rows, skipped, learner.deal(rows, known.prompts[rows], known.responses[rows]))


def _scored_besides(learner: Learner, known: Outline, pieces: Sequence[_Piece], cfg: Config) -> list[_Piece]:
    """Rows that only later epochs compute: each may have another row stand for an update of zeros."""
    first = len(pieces) // cfg.batch.epochs
    if first == len(pieces):
        return []
    parts = (pieces[first:], pieces[:first])
    late, early = (np.concatenate([piece.rows for piece in part]) for part in parts)
    unscored = np.setdiff1d(late, early)
    return [_piece(learner, known, unscored, unscored[:0])] if len(unscored) else []


def _wanted(pieces: Sequence[_Piece], ranks: int) -> list[Int64]:
    """The rows that each data-parallel rank computes, ascending."""
    nothing = np.zeros(0, dtype=np.int64)
    return [
        np.unique(np.concatenate([nothing, *(share.rows for piece in pieces for share in piece.dealt[rank])]))
        for rank in range(ranks)
    ]


def _scores(
    learner: Learner,
    batches: Sequence[Sequence[MicroBatch]],
    besides: Sequence[Sequence[MicroBatch]],
    cfg: Config,
    reference: bool,
) -> list[list[Float32]]:
    """Log-probabilities of every micro-batch of the updates' `batches`.

    Each row that any update computes is scored once: in the first epoch, or with those `besides`.
    """
    first = len(batches) // cfg.batch.epochs
    late = batches[first:]
    chosen = [*batches[:first], *(besides if late else [])]
    scored = [learner.score(made, reference) for made in chosen]
    if not late:
        return scored
    mine: dict[int, Float32] = {}
    for made, scores in zip(chosen, scored, strict=True):
        for batch, values in zip(made, scores, strict=True):
            parts = np.split(values, np.cumsum(batch.lengths)[:-1])
            mine |= zip(batch.rows.tolist(), parts, strict=True)
    everyone: list[dict[int, Float32]] = [{}] * learner.layout.data
    dist.all_gather_object(everyone, mine, group=learner.layout.data_group)
    known = {row: values for found in everyone for row, values in found.items()}
    later = [[np.concatenate([known[int(row)] for row in batch.rows]) for batch in made] for made in late]
    return [*scored[:first], *later]


def _sampled(samples: Samples, batch: MicroBatch) -> Float32:
    """The engine's log-probabilities of the batch's response tokens."""
    return np.concatenate([samples[int(row)].logprobs for row in batch.rows])


def _versions(samples: Samples, batch: MicroBatch) -> Int32:
    """The weight versions of the batch's response tokens."""
    return np.concatenate([samples[int(row)].versions for row in batch.rows])


def _aggregated(cfg: Config, lengths: Int64) -> tuple[Float32, int]:
    return aggregation(cfg.objective.aggregation, lengths, cfg.rollout.max_response_tokens)
