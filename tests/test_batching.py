"""Micro-batches hold every row once, within budget, cost alike, and say which tokens are responses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigpo_mega.batching import Cost, MicroBatch, Split, pack, updates
from gigpo_mega.config import BatchConfig
from gigpo_mega.types import Int64, Step
from tests.tiny import random_steps

COST = Cost(token=1.0, pair=0.02, response=3.0)


def ranks_of(count: int, cfg: BatchConfig, split: Split, seed: int = 0) -> list[list[MicroBatch]]:
    """What every data-parallel rank of `split` gets of `count` rows."""
    steps = random_steps(count, seed=seed)
    splits = (Split(split.ranks, r, split.sequence, split.columns, split.count) for r in range(split.ranks))
    return [pack(steps, np.arange(count), cfg, one, COST) for one in splits]


@given(
    count=st.integers(1, 40),
    budget=st.integers(10, 400),
    packed=st.booleans(),
    split=st.builds(
        lambda ranks, context, tensor, count: Split(ranks, 0, 2 * context, 2 * context * tensor, count),
        st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3),
    ),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_every_row_is_packed_once_and_ranks_stay_in_step(
    count: int, budget: int, packed: bool, split: Split, seed: int
) -> None:
    parts = ranks_of(count, BatchConfig(microbatch_tokens=budget, packed=packed), split, seed)
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) % split.count == 0
    rows = [row for part in parts for batch in part if batch.weight for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(count))
    for batch in (b for part in parts for b in part):
        assert batch.tokens.size <= budget or len(batch.rows) == 1
        assert batch.tokens.shape[1] % split.columns == 0
        assert not (np.diff(batch.starts) % split.sequence).any()
        assert batch.starts[0] == 0
        assert batch.starts[-1] == batch.tokens.shape[1]


@pytest.mark.parametrize("packed", [True, False])
def test_labels_and_mask_mark_the_response(packed: bool) -> None:
    steps = random_steps(6, seed=3)
    cfg = BatchConfig(microbatch_tokens=120, packed=packed)
    for batch in pack(steps, np.arange(6), cfg, Split(sequence=2, columns=4)):
        for row, tokens, labels, mask in sequences(batch):
            step = steps[row]
            whole = np.concatenate([step.prompt_ids, step.response_ids])
            assert labels[mask].tolist() == step.response_ids.tolist()
            assert tokens[: len(whole) - 1].tolist() == whole[:-1].tolist()
            assert not tokens[len(whole) - 1 :].any()
        values = np.arange(6, dtype=np.float32)
        assert batch.spread(values).tolist() == np.repeat(batch.rows, batch.lengths).tolist()
        assert batch.labels[batch.mask].tolist() == [
            token for row in batch.rows for token in steps[row].response_ids.tolist()
        ]


def sequences(batch: MicroBatch) -> list[tuple[int, Int64, Int64, Int64]]:
    """(row, tokens, labels, mask) of each sequence."""
    parts = [
        (line, slice(a, b))
        for line in range(len(batch.tokens))
        for a, b in zip(batch.starts[:-1], batch.starts[1:], strict=True)
    ]
    return [
        (int(row), *(array[line, columns] for array in (batch.tokens, batch.labels, batch.mask)))
        for row, (line, columns) in zip(batch.rows, parts, strict=True)
    ]  # type: ignore[misc]


def test_packed_sequences_leave_nothing_empty() -> None:
    steps = random_steps(40)
    used = sum(len(s.prompt_ids) + len(s.response_ids) - 1 for s in steps)
    batches = pack(steps, np.arange(40), BatchConfig(microbatch_tokens=200))
    assert sum(batch.tokens.size for batch in batches) == used
    assert len(batches) == -(-used // 200)


def agent_steps(count: int, seed: int = 0) -> list[Step]:
    """Rows as long as an agent's: prompts of a log-normal length, answers of 20 to 200 tokens."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(6.5, 0.6, count), 100, 4000).astype(int)
    answers = rng.integers(20, 200, count)
    ids, zeros = np.zeros(4200, dtype=np.int32), np.zeros(4200, dtype=np.float32)
    return [
        Step(ids[:p], ids[:r], zeros[:r], 0.0, True, bytes(16), ids[:r])
        for p, r in zip(prompts, answers, strict=True)
    ]


def cost_of(batch: MicroBatch, cost: Cost) -> float:
    widths = np.diff(batch.starts).repeat(len(batch.tokens))
    return float(cost.of(widths, batch.lengths).sum())


def test_ranks_and_micro_batches_cost_alike() -> None:
    """Qwen2.5-1.5B's cost on an update of 256 agent rows over 8 ranks: all wait for the costliest."""
    cost = Cost(token=1.31e9, pair=28 * 1536, response=1536 * 151936)
    steps = agent_steps(256)
    cfg = BatchConfig(microbatch_tokens=16384)
    parts = [pack(steps, np.arange(256), cfg, Split(8, rank), cost) for rank in range(8)]
    ranks = np.array([sum(cost_of(batch, cost) for batch in part) for part in parts])
    each = np.array([cost_of(batch, cost) for part in parts for batch in part])
    assert ranks.max() / ranks.mean() < 1.005
    assert each.max() / each.mean() < 1.02


def test_attention_counts_quadratically() -> None:
    """One long sequence weighs as much as many short ones of the same number of tokens and more."""
    ids, zeros = np.zeros(1001, dtype=np.int32), np.zeros(1, dtype=np.float32)
    steps = [Step(ids[:n], ids[:1], zeros, 0.0, True, bytes(16), ids[:1]) for n in (800, *[100] * 16)]
    cost = Cost(token=1.0, pair=0.01)  # 800 tokens: 7,200; 100 tokens: 200
    cfg = BatchConfig(microbatch_tokens=10_000)
    long, rest = (pack(steps, np.arange(17), cfg, Split(2, rank), cost)[0] for rank in (0, 1))
    assert long.rows.tolist() == [0]
    assert sorted(rest.rows.tolist()) == list(range(1, 17))


def test_fillers_are_the_shortest_row_without_weight() -> None:
    for packed in (True, False):
        cfg = BatchConfig(packed=packed)
        parts = ranks_of(2, cfg, Split(ranks=3, count=2))
        fillers = [batch for part in parts for batch in part if not batch.weight]
        assert len(fillers) == 4
        shortest = min(batch.tokens.size for part in parts for batch in part)
        assert {batch.tokens.size for batch in fillers} == {shortest}


@pytest.mark.parametrize("packed", [True, False])
def test_a_lone_row_may_exceed_the_budget(packed: bool) -> None:
    steps = agent_steps(20, seed=1)
    longest = max(len(s.prompt_ids) + len(s.response_ids) - 1 for s in steps)
    batches = pack(steps, np.arange(20), BatchConfig(microbatch_tokens=longest // 2, packed=packed))
    assert max(batch.tokens.size for batch in batches) == longest
    assert all(batch.tokens.size <= longest // 2 or len(batch.rows) == 1 for batch in batches)


@pytest.mark.parametrize(
    ("rows", "pieces"), [(None, [10]), (6, [5, 5]), (4, [5, 5]), (3, [4, 3, 3]), (100, [10])]
)
def test_updates_are_even(rows: int | None, pieces: list[int]) -> None:
    cfg = BatchConfig(rows_per_update=rows, epochs=2, shuffle=True)
    found = list(updates(np.arange(10), cfg, np.random.default_rng(0)))
    assert [len(piece) for piece in found] == pieces * 2
    assert sorted(np.concatenate(found).tolist()) == sorted([*range(10), *range(10)])


def test_no_rows_means_no_update() -> None:
    assert list(updates(np.zeros(0, dtype=np.int64), BatchConfig(), np.random.default_rng(0))) == []
