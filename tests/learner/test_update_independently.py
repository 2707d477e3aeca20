"""The whole update, from episodes to weights, against an implementation that shares no code with ours.

Ours runs in float32 on megatron-core, the other in float64 on transformers and torch's AdamW
(`independent.py`). Layouts are compared with each other elsewhere; only this test says that they are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.base import Task
from gigpo_mega.algorithms.advantage import estimate
from gigpo_mega.batching import MicroBatch
from gigpo_mega.config import (
    AdvantageConfig,
    BatchConfig,
    Config,
    ObjectiveConfig,
    OptimizerConfig,
    RolloutConfig,
    WeightsConfig,
)
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.learner import Learner, UpdateStats
from gigpo_mega.learner.update import _summary, update_policy
from gigpo_mega.shape import ModelShape
from gigpo_mega.types import Group, RowTable, Step, Trajectory
from gigpo_mega.weights import live
from tests.learner.independent import IndependentLearner, Update, advantages
from tests.tiny import QWEN2, write_policy

pytestmark = pytest.mark.distributed

ITERATIONS = 3  # of the run whose first two are computed


def groups(seed: int) -> tuple[Group, ...]:
    """Four tasks of three episodes of one to four steps in three states; the second task's all fail alike.

    States have the same keys in every task, so that tasks must be kept apart.
    """
    rng = np.random.default_rng(seed)
    states = [bytes([state]) * 16 for state in range(3)]

    def step(task: int, last: bool) -> Step:
        plain = task == 1
        size = int(rng.integers(1, 6))
        return Step(
            prompt_ids=rng.integers(0, QWEN2["vocab_size"], rng.integers(5, 40)).astype(np.int32),
            response_ids=rng.integers(0, QWEN2["vocab_size"], size).astype(np.int32),
            logprobs=(rng.normal(-5.4, 0.4, size)).astype(np.float32),
            reward=0.0 if plain else float(rng.choice([0.0, 1.0, 3.0]) if last else rng.choice([0.0, 0.25])),
            valid=plain or rng.random() < 0.7,
            anchor=states[rng.integers(3)],
            versions=np.zeros(size, np.int32),
        )

    made: list[Group] = []
    for task in (Task(f"task-{number}", "kind", "") for number in range(4)):
        episodes: list[Trajectory] = []
        for _ in range(3):
            length = int(rng.integers(1, 5))
            steps = tuple(step(len(made), last=t == length - 1) for t in range(length))
            score = sum(s.reward for s in steps)
            episodes.append(Trajectory(task, steps, score, score > 0, "success" if score > 0 else "failure"))
        made.append(Group(task, tuple(episodes)))
    return tuple(made)


def config(**sections: dict[str, Any]) -> Config:
    """Clipping of every kind, decay, warm-up and a temperature; `sections` are changed fields."""

    def fields(section: str, **defaults: Any) -> dict[str, Any]:
        return defaults | sections.get(section, {})

    return Config(
        iterations=ITERATIONS,
        seed=3,
        advantage=AdvantageConfig(**fields("advantage", gamma=0.8, omega=0.7)),
        objective=ObjectiveConfig(
            **fields("objective", clip_low=0.1, clip_high=0.15, dual_clip=1.2, kl_coef=0.3, entropy_coef=0.05)
        ),
        # An epsilon above the gradients' rounding: a key's bias has no gradient but that.
        optimizer=OptimizerConfig(
            **fields(
                "optimizer", lr=6e-3, min_lr=1e-3, schedule="linear", warmup_updates=2, decay_updates=9,
                grad_clip=0.4, weight_decay=0.1, beta2=0.99, epsilon=1e-4,
            )
        ),
        batch=BatchConfig(**fields("batch", rows_per_update=6, microbatch_tokens=90)),
        rollout=RolloutConfig(temperature=0.7, max_response_tokens=7),
        weights=WeightsConfig(max_logprob_gap=100.0),  # the steps' log-probs are random
    )  # fmt: skip


SKIPPING = "seq-mean-token-sum-skipping"
CASES = {
    "token-mean": config(batch={"skip_zero": True}),  # KL and entropy need all rows
    SKIPPING: config(
        objective={"aggregation": "seq-mean-token-sum", "kl_coef": 0.0, "entropy_coef": 0.0},
        optimizer={"schedule": "cosine", "decay_updates": None},
        batch={"skip_zero": True, "shuffle": True, "epochs": 2, "rows_per_update": 10},
    ),
    "seq-mean-token-mean-padded": config(
        advantage={"normalization": "mean", "omega": 0.5},
        objective={"aggregation": "seq-mean-token-mean"},
        batch={"packed": False, "shuffle": True, "epochs": 2},
    ),
    "seq-mean-token-sum-norm-engine": config(
        objective={"aggregation": "seq-mean-token-sum-norm", "old_logprob": "engine"},
        optimizer={"decay_updates": None},
    ),
    "cispo-token-weights": config(
        objective={
            "surrogate": "cispo", "dual_clip": None, "rollout_is": "token", "rollout_is_low": 0.7,
            "rollout_is_high": 1.2,
        },
    ),
    "sequence-weights": config(objective={"rollout_is": "sequence", "rollout_is_high": 1.5}),
    "masked-responses": config(objective={"rollout_mask_low": 0.8, "rollout_mask_high": 1.3}),
    "token-weights-in-an-only-update": config(
        objective={"rollout_is": "token", "rollout_is_high": 1.1}, batch={"rows_per_update": None}
    ),
}  # fmt: skip
CLIPS = ("clipped_low", "clipped_high", "dual_clipped")


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    yield parallel.initialize(Config().parallel, seed=0)
    parallel.shutdown()


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The policy that learns and the reference policy, which differ."""
    folder = tmp_path_factory.mktemp("policies")
    return write_policy(folder / "start", seed=0), write_policy(folder / "reference", seed=1)


def ours(cfg: Config, layout: Layout, start: Path, reference: Path) -> Learner:
    learner = Learner(cfg, ModelShape.from_hf(start), layout)
    live.load(learner.policy, learner.shape, layout, reference)
    learner.keep_reference()
    live.load(learner.policy, learner.shape, layout, start)
    learner.refresh()
    return learner


def iterate(learner: Learner, cfg: Config, played: Sequence[Group], iteration: int) -> list[UpdateStats]:
    """One iteration as gigpo_mega/train.py makes it; returns what each update measured."""
    stats: list[UpdateStats] = []
    update = Learner.update

    def recording(self: Learner, *arguments: Any) -> UpdateStats:
        stats.append(update(self, *arguments))
        return stats[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", recording)
        rows = RowTable.from_groups(played)
        update_policy(learner, rows, estimate(rows, cfg.advantage), cfg, iteration)
    return stats


def assert_agrees(found: UpdateStats, expected: Update, every_row: bool) -> None:
    """Sums of a hundred float32 terms of about 5: rounding leaves 1e-6."""
    assert found.losses["loss/total"] == pytest.approx(expected.loss, rel=2e-6, abs=2e-6)
    assert found.losses["loss/policy"] == pytest.approx(expected.surrogate, rel=2e-6, abs=2e-6)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=5e-6)
    assert found.lr == pytest.approx(expected.lr, rel=1e-12)
    if every_row:
        means = _summary([found])
        assert found.tokens == expected.tokens
        assert means.get("loss/rollout_masked", 0.0) == expected.masked / expected.tokens
        clipped, learned = expected.clipped_low + expected.clipped_high, expected.tokens - expected.masked
        assert means["loss/clip_fraction"] == pytest.approx(clipped / learned, rel=1e-6)
        assert means["loss/dual_clip_fraction"] == pytest.approx(expected.dual_clipped / learned, rel=1e-6)
        assert means["loss/entropy"] == pytest.approx(expected.entropy, rel=2e-6)
        if "loss/rollout_is" in means:
            assert means["loss/rollout_is"] == pytest.approx(expected.rollout_is, rel=2e-6)
        if "loss/kl" in means:
            assert means["loss/kl"] == pytest.approx(expected.kl, rel=2e-5)  # k3 of a small difference
        if "engine/logprob_gap_mean" in means:
            assert means["engine/logprob_gap_mean"] == pytest.approx(expected.gap, rel=1e-5)


def assert_weights_agree(learner: Learner, other: IndependentLearner) -> None:
    """A few last places of float32 at 1, which is what the weights of norms are about."""
    exact = other.policy.state_dict()
    seen: set[str] = set()
    for name, weight in live.export(learner.policy, learner.shape, learner.layout):
        assert float((weight.double() - exact[name]).abs().max()) < 1e-6, name
        seen.add(name)
    assert seen == exact.keys() - {"lm_head.weight"}  # tied to the embedding


def test_both_levels_of_the_advantage_agree() -> None:
    for cfg in CASES.values():
        played = groups(seed=0)
        expected = np.array(advantages(played, cfg.advantage))
        found = estimate(RowTable.from_groups(played), cfg.advantage)
        np.testing.assert_allclose(found.total, expected[:, 0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.episode, expected[:, 1], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.step, expected[:, 2], rtol=1e-6, atol=1e-6)
        assert np.count_nonzero(found.total == 0) >= 3  # rows that may be skipped
        assert np.count_nonzero(np.abs(found.total - found.episode) > 0.1) >= 10  # a step level that counts


@pytest.mark.parametrize("name", CASES)
def test_two_iterations_of_updates_agree(name: str, layout: Layout, policies: tuple[Path, Path]) -> None:
    cfg = CASES[name]
    learner, other = ours(cfg, layout, *policies), IndependentLearner(cfg, *policies)
    updates: list[Update] = []
    for iteration in range(2):
        played = groups(seed=iteration)
        expected = other.iterate(played, iteration)
        found = iterate(learner, cfg, played, iteration)
        for one, two in zip(found, expected, strict=True):
            assert_agrees(one, two, every_row=name != SKIPPING)
        updates += expected
    assert_weights_agree(learner, other)
    if cfg.objective.rollout_is:
        assert max(abs(u.rollout_is - 1.0) for u in updates) > 0.02
    if cfg.objective.rollout_mask_low:
        assert 0.2 < sum(u.masked for u in updates) / sum(u.tokens for u in updates) < 0.8
    if cfg.batch.rows_per_update is None:
        return  # every ratio is 1
    clips = CLIPS if cfg.objective.dual_clip else CLIPS[:2]
    assert min(len(updates), *(sum(getattr(u, kind) for u in updates) for kind in clips)) >= 2
    assert any(u.grad_norm > cfg.optimizer.grad_clip for u in updates)


def test_micro_batches_that_only_fill_up_change_nothing(
    layout: Layout, policies: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data-parallel ranks and interleaved pipelines get micro-batches of weight 0 to stay in step."""
    build = Learner.build

    def filled(self: Learner, *arguments: Any) -> list[MicroBatch]:
        batches = build(self, *arguments)
        return [*batches, replace(batches[0], weight=0.0)]

    monkeypatch.setattr(Learner, "build", filled)
    cfg = CASES["token-mean"]
    learner, other = ours(cfg, layout, *policies), IndependentLearner(cfg, *policies)
    expected = other.iterate(groups(seed=0), 0)
    for one, two in zip(iterate(learner, cfg, groups(seed=0), 0), expected, strict=True):
        assert_agrees(one, two, every_row=True)
    assert_weights_agree(learner, other)
