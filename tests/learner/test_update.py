"""The policy update: rows that are skipped, scores that are not needed, numbers that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gigpo_mega.coldstart.clone import cloning_loss
from gigpo_mega.config import CheckpointConfig, Config
from gigpo_mega.errors import UserError
from gigpo_mega.learner import update
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.learner import Learner, UpdateStats
from gigpo_mega.learner.update import Learned, LogprobMismatch, UnusableGroups, update_policy
from gigpo_mega.types import Advantages, RowTable
from gigpo_mega.weights import live
from kernels.logprob import chunked
from kernels.logprob.statistics import Rows
from tests.helpers import whole
from tests.learner import ranks
from tests.tiny import random_steps

pytestmark = pytest.mark.distributed


def config(**changes: Any) -> Config:
    """Without KL and entropy, so that rows of advantage 0 need not be computed."""
    return ranks.config(**{"kl_coef": 0.0, "entropy_coef": 0.0, **changes})


def table(zeros: int = 0) -> tuple[RowTable, Advantages]:
    """The shared rows, of which the first `zeros` in a fixed random order have advantage 0."""
    rows, advantages = ranks.table(random_steps(ranks.ROWS))
    total = advantages.total.copy()
    total[np.random.default_rng(2).permutation(len(total))[:zeros]] = 0.0
    return replace(rows, tasks=("clean-mug-1",)), replace(advantages, total=total)


def updated(place: ranks.Place, cfg: Config, zeros: int = 0) -> tuple[Learner, dict[str, float]]:
    """A learner after one iteration on the shared rows, and the metrics."""
    learner = ranks.learner(replace(place, cfg=cfg))
    return learner, update_policy(learner, *table(zeros), cfg, 0).metrics


def weights(learner: Learner) -> torch.Tensor:
    named = live.export(learner.policy, learner.shape, learner.layout)
    return torch.cat([tensor.flatten().clone() for _, tensor in named])


def by_row(learned: Learned) -> dict[int, bool]:
    """Whether the learner's log-probs of each row are known."""
    assert learned.logprobs is not None
    ends = np.cumsum([len(step.response_ids) for step in random_steps(ranks.ROWS)])[:-1]
    return {row: not np.isnan(part).any() for row, part in enumerate(np.split(learned.logprobs, ends))}


@pytest.mark.parametrize("changes", [
    {}, {"epochs": 2}, {"rows_per_update": None}, {"shuffle": True, "packed": False},
    {"old_logprob": "engine"},
])  # fmt: skip
def test_the_logprobs_handed_back_are_those_below_the_ratio_or_of_the_update(
    place: ranks.Place, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the loss got them, token by token, whatever order and packing the rows had."""
    cfg, known = config(**changes), dict[tuple[float, ...], list[float]]()
    objective = update.policy_loss

    def noting(logprob: Any, old: Any, advantage: Any, *others: Any, **more: Any) -> Any:
        chosen = logprob.detach() if cfg.objective.old_logprob == "engine" else old
        ends = more["lengths"].cumsum(0)[:-1].tolist()
        parts = (np.split(column.numpy(), ends) for column in (chosen, advantage))
        for part, weight in zip(*parts, strict=True):
            known.setdefault(tuple(weight.tolist()), part.tolist())  # a row's advantage is its own
        return objective(logprob, old, advantage, *others, **more)

    monkeypatch.setattr(update, "policy_loss", noting)
    rows, advantages = table()
    learned = update_policy(ranks.learner(replace(place, cfg=cfg)), rows, advantages, cfg, 0)
    expected = [
        known[(float(total),) * len(step.response_ids)]
        for total, step in zip(advantages.total, rows.steps, strict=True)
    ]
    assert learned.logprobs is not None
    assert learned.logprobs.tolist() == [value for row in expected for value in row]


def test_the_logprobs_of_rows_that_are_not_computed_are_unknown(place: ranks.Place) -> None:
    cfg = config(skip_zero=True)
    rows, advantages = table(14)
    learned = update_policy(ranks.learner(replace(place, cfg=cfg)), rows, advantages, cfg, 0)
    assert {row for row, known in by_row(learned).items() if known} >= set(np.flatnonzero(advantages.total))
    assert sum(by_row(learned).values()) <= 4 + 3  # a row stands in for an update of zeros


@pytest.mark.parametrize("zeros", [0, 14, ranks.ROWS])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_rows_of_advantage_zero_may_be_skipped(place: ranks.Place, aggregation: str, zeros: int) -> None:
    """80% zeros used to make the gradient 3.8 times as long, and three updates one."""
    found = [updated(place, config(aggregation=aggregation, skip_zero=skip), zeros) for skip in (False, True)]
    (all_rows, expected), (fewer, metrics) = found
    assert metrics["optimizer/updates"] == expected["optimizer/updates"] == 3
    for name in ("loss/total", "loss/policy", "optimizer/grad_norm", "optimizer/lr", "update/rows"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-6), name
    assert float((weights(all_rows) - weights(fewer)).abs().max()) < 1e-6


def test_skipped_rows_are_not_computed(place: ranks.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    deal = Learner.deal

    def counting(self: Learner, rows: Any, *lengths: Any) -> Any:
        computed.append(len(rows))
        return deal(self, rows, *lengths)

    monkeypatch.setattr(Learner, "deal", counting)
    updated(place, config(skip_zero=True), zeros=14)
    kept = np.split(table(14)[1].total != 0, 3)
    assert computed == [max(1, int(piece.sum())) for piece in kept]
    assert sum(computed) <= ranks.ROWS - 14 + 1


@pytest.mark.parametrize(("changes", "scored"), [
    ({"rows_per_update": None}, 0),  # an only update learns with the policy that would score
    ({"rows_per_update": None, "kl_coef": 0.1}, 1),  # the reference policy
    ({}, 3),
    ({"epochs": 2}, 3),  # each row once, not once an epoch
    ({"epochs": 3, "shuffle": True, "rows_per_update": None}, 1),
    ({"old_logprob": "engine"}, 0),
])  # fmt: skip
def test_rows_are_scored_no_more_often_than_needed(
    place: ranks.Place, changes: dict[str, Any], scored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    score = Learner.score

    def counting(self: Learner, *arguments: Any) -> Any:
        calls.append(1)
        return score(self, *arguments)

    monkeypatch.setattr(Learner, "score", counting)
    updated(place, config(**changes))
    assert len(calls) == scored


@pytest.mark.parametrize(("epochs", "updates"), [(2, 6), (3, 3)])
def test_a_row_that_stands_in_for_skipped_ones_is_scored_whichever_epoch_needs_it(
    place: ranks.Place, epochs: int, updates: int
) -> None:
    """Shuffled, each epoch has another row stand in for an update of zeros: a KeyError of the unscored."""
    batch: dict[str, Any] = {"shuffle": True, "epochs": epochs, "rows_per_update": ranks.ROWS // updates}
    found = [updated(place, config(skip_zero=skip, **batch), 16) for skip in (False, True)]
    (all_rows, expected), (fewer, metrics) = found
    assert metrics["optimizer/updates"] == expected["optimizer/updates"] == updates * epochs
    for name in ("loss/total", "loss/policy", "optimizer/grad_norm"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-6), name
    assert float((weights(all_rows) - weights(fewer)).abs().max()) < 1e-6


def recorded(
    place: ranks.Place, cfg: Config
) -> tuple[list[tuple[UpdateStats, torch.Tensor]], dict[str, float]]:
    """What each update of an iteration measured and the weights that it left, and the iteration's metrics."""
    found: list[tuple[UpdateStats, torch.Tensor]] = []
    update = Learner.update

    def noting(self: Learner, *arguments: Any) -> UpdateStats:
        stats = update(self, *arguments)
        found.append((stats, weights(self)))
        return stats

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", noting)
        _, metrics = updated(place, cfg)
    return found, metrics


def test_an_only_update_without_scoring_is_the_same_update(place: ranks.Place) -> None:
    """One pass, with its own log-probs below the ratio, equals the first of two, which are scored."""
    [(alone, left)], _ = recorded(place, config(rows_per_update=None))
    [(first, after_first), (_, after_both)], _ = recorded(place, config(rows_per_update=None, epochs=2))
    assert alone.means["loss/approx_kl"] == first.means["loss/approx_kl"] == 0.0
    assert alone == first
    assert [part.tobytes() for part in alone.kept] == [part.tobytes() for part in first.kept]
    assert torch.equal(left, after_first)
    assert float((after_both - after_first).abs().max()) > 1e-4  # the second epoch did something


def test_metrics_of_an_iteration_count_tokens_and_losses_their_denominators(place: ranks.Place) -> None:
    """Updates have as many rows but not as many tokens: a mean over updates is another number."""
    found, metrics = recorded(place, config(rows_per_update=3, entropy_coef=0.05))
    stats = [s for s, _ in found]
    assert len({s.tokens for s in stats}) > 3

    def plain(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    for name in ("loss/approx_kl", "loss/clip_fraction"):
        expected = sum(s.means[name] * s.tokens for s in stats) / sum(s.tokens for s in stats)
        assert metrics[name] == pytest.approx(expected, rel=1e-12)
        assert abs(expected - plain([s.means[name] for s in stats])) > 5e-3 * abs(expected)
    for name in ("loss/total", "loss/policy"):
        expected = sum(s.losses[name] * s.count for s in stats) / sum(s.count for s in stats)
        assert metrics[name] == pytest.approx(expected, rel=1e-12)
        assert abs(expected - plain([s.losses[name] for s in stats])) > 5e-3 * abs(expected)


@pytest.fixture
def entropy_slopes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each backward pass of the head computes the entropy's gradient."""
    computed: list[bool] = []
    gradients = chunked.gradients

    def noting(hidden: Any, weight: Any, rows: Rows, *others: Any) -> None:
        computed.append(rows.entropy)
        gradients(hidden, weight, rows, *others)

    monkeypatch.setattr(chunked, "gradients", noting)
    return computed


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_the_entropy_has_a_gradient_only_if_it_counts(
    place: ranks.Place, coefficient: float, entropy_slopes: list[bool]
) -> None:
    """A product with 0 has a gradient, of zeros: the head computed it like any other."""
    _, metrics = updated(place, config(entropy_coef=coefficient))
    assert metrics["loss/entropy"] > 4.0  # it is measured in any case
    assert len(entropy_slopes) >= 3
    assert set(entropy_slopes) == {coefficient > 0}


def test_cloning_computes_no_gradient_of_the_entropy(place: ranks.Place, entropy_slopes: list[bool]) -> None:
    learner = ranks.learner(replace(place, cfg=ranks.config()))
    batches = learner.pack(random_steps(ranks.ROWS), np.arange(ranks.ROWS))
    learner.update([(b, whole(b)) for b in batches], cloning_loss)
    assert set(entropy_slopes) == {False}


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_never_reaches_the_weights(
    place: ranks.Place, where: str, value: float, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config()
    learner = ranks.learner(replace(place, cfg=cfg))
    before = weights(learner)
    states: list[torch.Tensor] = [before]
    ranks.poison(learner, where, value, at, lambda: states.append(weights(learner)))
    with pytest.raises(UnusableGroups) as caught:
        update_policy(learner, *table(), cfg, 7)
    said = str(caught.value)
    assert said.startswith(f"iteration 7, update {at + 1} of 3: ")
    assert "rewards from 0 to 0, task(s) clean-mug-1" in said
    assert "\n" not in said
    assert torch.equal(weights(learner), states[-1])  # as the update before left them
    assert (torch.equal(states[-1], before)) == (at == 0)
    assert learner.updates == at
    assert learner.iteration == 0


def test_updates_that_are_not_finite_can_be_skipped(
    place: ranks.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config()
    cfg = replace(cfg, optimizer=replace(cfg.optimizer, nonfinite="skip", max_skips=1))
    learner = ranks.learner(replace(place, cfg=cfg))
    ranks.poison(learner, "gradient", float("nan"), 1)
    learned = update_policy(learner, *table(), cfg, 0)
    metrics, piece = learned.metrics, np.repeat(np.arange(3), 6)
    assert (metrics["optimizer/updates"], metrics["optimizer/skipped"]) == (2, 1)
    assert by_row(learned) == {row: piece[row] != 1 for row in range(ranks.ROWS)}
    assert torch.isfinite(weights(learner)).all()
    assert "update 2 of 3: a gradient is not finite" in capsys.readouterr().err


def test_too_many_skips_in_a_row_stop_the_run(place: ranks.Place) -> None:
    cfg = config()
    cfg = replace(cfg, optimizer=replace(cfg.optimizer, nonfinite="skip", max_skips=1))
    learner = ranks.learner(replace(place, cfg=cfg))
    before = weights(learner)
    ranks.poison(learner, "gradient", float("inf"), 0, times=2)
    with pytest.raises(UnusableGroups, match="iteration 0, update 2 of 3"):
        update_policy(learner, *table(), cfg, 0)
    assert torch.equal(weights(learner), before)


def skipping(limit: float) -> Config:
    """Updates that are not finite are skipped; the random log-probs of the rows are about 0.3 off."""
    cfg = config()
    return replace(
        cfg,
        optimizer=replace(cfg.optimizer, nonfinite="skip"),
        weights=replace(cfg.weights, max_logprob_gap=limit),
    )


@pytest.mark.parametrize("where", ["loss", "gradient", "scores"])
def test_the_engine_is_compared_although_the_first_update_is_not_finite(
    place: ranks.Place, where: str
) -> None:
    """The gap was computed in the first update alone, and an update that was skipped took it along."""
    cfg = skipping(limit=0.1)
    learner = ranks.learner(replace(place, cfg=cfg))
    before = weights(learner)
    ranks.poison(learner, where, float("nan"), 0)
    with pytest.raises(LogprobMismatch, match=r"log-probs are 0\.\d+ from the learner's, more than"):
        update_policy(learner, *table(), cfg, 0)
    assert torch.equal(weights(learner), before)
    assert learner.updates == 0


def test_the_gap_is_that_of_the_first_update_that_changes_the_policy(place: ranks.Place) -> None:
    cfg = skipping(limit=100.0)
    learner = ranks.learner(replace(place, cfg=cfg))
    ranks.poison(learner, "scores", float("nan"), 0)
    rows, advantages = table()
    skipped = update_policy(learner, rows, advantages, cfg, 0).metrics
    fresh = ranks.learner(replace(place, cfg=cfg))
    batches = fresh.pack(rows.steps, np.arange(6, 12))  # the second of three updates
    sampled = [rows.steps[row].logprobs for batch in batches for row in batch.rows]
    gap = np.abs(np.concatenate(fresh.score(batches)) - np.concatenate(sampled))
    assert skipped["engine/logprob_gap_mean"] == pytest.approx(float(gap.mean()), rel=1e-5)
    assert skipped["engine/logprob_gap_max"] == pytest.approx(float(gap.max()), rel=1e-5)


def test_an_engine_that_reports_nan_is_a_mismatch(place: ranks.Place) -> None:
    cfg = skipping(limit=100.0)
    rows, advantages = table()
    wrong = replace(rows.steps[0], logprobs=rows.steps[0].logprobs * np.float32("nan"))
    rows = replace(rows, steps=(wrong, *rows.steps[1:]))
    with pytest.raises(LogprobMismatch, match="log-probs are nan from the learner's"):
        update_policy(ranks.learner(replace(place, cfg=cfg)), rows, advantages, cfg, 0)


def test_weights_that_are_not_finite_are_neither_pushed_nor_saved(place: ranks.Place, tmp_path: Path) -> None:
    learner = ranks.learner(place)
    learner.iteration = 3
    chunk: Any = next(iter(learner.policy))
    with torch.no_grad():
        chunk.decoder.final_layernorm.weight[2] = float("nan")
    with pytest.raises(UserError, match=r"model\.norm\.weight is not finite"):
        weights(learner)
    with pytest.raises(UserError, match="not finite"):
        Checkpoints(tmp_path, CheckpointConfig()).save(learner)
    assert not list(tmp_path.glob("iteration_*"))


@pytest.mark.parametrize(("changes", "expected"), [
    ({"lr": 1e-4, "warmup_updates": 0}, {"lr": 1e-4}),
    ({"lr": 1e-3, "min_lr": 0.0, "warmup_updates": 0, "decay_updates": 4}, {"lr": 2.5e-4}),
    ({"weight_decay": 0.5}, {"weight_decay": 0.5}),
    ({"beta1": 0.5}, {"betas": (0.5, 0.999)}),
    ({"epsilon": 1e-6}, {"eps": 1e-6}),
])  # fmt: skip
def test_a_resumed_run_uses_the_optimizer_settings_of_its_configuration(
    place: ranks.Place, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    learner, _ = updated(place, config())
    Checkpoints(tmp_path, CheckpointConfig()).save(learner)
    cfg = config()
    schedule = "linear" if "decay_updates" in changes else "constant"
    settings: dict[str, Any] = {"schedule": schedule, "decay_updates": None, **changes}
    cfg = replace(cfg, optimizer=replace(cfg.optimizer, **settings))
    resumed = ranks.learner(replace(place, cfg=cfg))
    Checkpoints(tmp_path, CheckpointConfig()).load(resumed, 1)
    assert resumed.updates == 3
    batches = resumed.pack(random_steps(ranks.ROWS), np.arange(ranks.ROWS))
    stats = resumed.update([(b, whole(b)) for b in batches], cloning_loss)
    used = resumed.optimizer.param_groups[0]
    assert stats.lr == pytest.approx(used["lr"], abs=0)
    for name, value in expected.items():
        assert used[name] == pytest.approx(value, rel=1e-12), name
