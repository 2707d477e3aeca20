"""What the loss measures is averaged over the tokens that it learns from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gigpo_mega.learner import update
from tests.learner import ranks

pytestmark = pytest.mark.distributed


def measured(place: ranks.Place, low: float) -> dict[str, float]:
    """The metrics of an iteration with such a lower bound of the mask."""
    cfg = ranks.config(rollout_mask_low=low)
    return ranks.iterate(ranks.learner(replace(place, cfg=cfg)), cfg, 0)


def test_means_of_the_loss_are_over_the_tokens_that_no_mask_leaves_out(
    place: ranks.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were divided by all tokens: a mask that grew looked like an entropy that collapsed."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []  # entropies, and which responses' tokens are learned from
    low, objective = 1.0, update.policy_loss

    def noting(logprob: Any, old: Any, *others: Any, **more: Any) -> Any:
        ratio = (old - more["sampled_logprob"]).numpy()
        rows = np.split(ratio, more["lengths"].cumsum(0)[:-1].tolist())
        learned = np.concatenate([np.full(len(row), np.exp(row.mean()) >= low) for row in rows])
        seen.append((more["entropy"].detach().numpy(), learned))
        return objective(logprob, old, *others, **more)

    monkeypatch.setattr(update, "policy_loss", noting)
    metrics = measured(place, low)
    entropy, learned = (np.concatenate(column) for column in zip(*seen, strict=True))
    assert 0.2 < learned.mean() < 0.9
    assert metrics["loss/rollout_masked"] == pytest.approx(1.0 - learned.mean())
    assert metrics["loss/entropy"] == pytest.approx(entropy[learned].mean(), rel=1e-5)
    metrics = measured(place, 1e9)
    assert metrics["loss/rollout_masked"] == 1.0
    assert "loss/entropy" not in metrics
