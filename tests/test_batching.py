"""Micro-batches hold every row once, within budget, and say exactly which tokens are responses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gigpo_mega.batching import cut, pack, updates
from gigpo_mega.config import BatchConfig
from tests.tiny import random_steps


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), budget=st.integers(10, 400), ranks=st.integers(1, 4), seed=st.integers(0, 9))
def test_every_row_is_packed_once_and_ranks_stay_in_step(
    count: int, budget: int, ranks: int, seed: int
) -> None:
    steps = random_steps(count, seed=seed)
    parts = [pack(steps, np.arange(count), budget, ranks=ranks, rank=rank) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    rows = [row for part in parts for batch in part if batch.weight for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(count))
    for batch in (b for part in parts for b in part):
        assert batch.tokens.size <= budget or len(batch.rows) == 1


def test_labels_and_mask_mark_the_response() -> None:
    steps = random_steps(6, seed=3)
    for batch in pack(steps, np.arange(6), 120, multiple=4):
        assert batch.tokens.shape[1] % 4 == 0
        for i, row in enumerate(batch.rows):
            step = steps[row]
            whole = np.concatenate([step.prompt_ids, step.response_ids])
            assert batch.labels[i][batch.mask[i]].tolist() == step.response_ids.tolist()
            assert batch.tokens[i][: len(whole) - 1].tolist() == whole[:-1].tolist()
            assert not batch.tokens[i][len(whole) - 1 :].any()
        values = np.arange(6, dtype=np.float32)
        assert batch.spread(values).tolist() == np.repeat(batch.rows, batch.lengths).tolist()


def test_cut_keeps_a_lone_row_above_the_budget() -> None:
    lengths = np.array([50, 10, 10, 200], dtype=np.int64)
    assert [piece.tolist() for piece in cut(lengths, np.arange(4), 60)] == [[3], [0], [1, 2]]


@pytest.mark.parametrize(("rows", "pieces"), [(None, [10]), (4, [5, 5]), (3, [4, 3, 3]), (100, [10])])
def test_updates_are_even(rows: int | None, pieces: list[int]) -> None:
    cfg = BatchConfig(rows=rows, epochs=2, shuffle=True)
    found = list(updates(np.arange(10), cfg, np.random.default_rng(0)))
    assert [len(piece) for piece in found] == pieces * 2
    assert sorted(np.concatenate(found).tolist()) == sorted([*range(10), *range(10)])


def test_no_rows_means_no_update() -> None:
    assert list(updates(np.zeros(0, dtype=np.int64), BatchConfig(), np.random.default_rng(0))) == []
