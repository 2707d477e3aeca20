"""Layouts that cannot be, and what each option becomes in megatron; no process is started."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from gigpo_mega.config import Config, ModelConfig, ParallelConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import context
from gigpo_mega.learner.layers import CausalAttention
from gigpo_mega.learner.model import transformer_config
from gigpo_mega.shape import ModelShape, check_world

QWEN_1_5B = ModelShape(
    family="qwen2", vocab=151936, hidden=1536, ffn=8960, layers=28, heads=12, kv_heads=2, head_dim=128,
    rope_theta=1e6, norm_epsilon=1e-6, max_positions=32768, tied=True, qkv_bias=True,
)  # fmt: skip


def test_a_layout_that_does_not_multiply_to_the_world_names_the_whole_product() -> None:
    with pytest.raises(UserError) as error:
        check_world(ParallelConfig(tensor=2, pipeline=3), world=8)
    assert str(error.value) == (
        "parallel: tensor 2 x pipeline 3 x context 1 x data = world size 8 has no whole solution for data: "
        "start a multiple of 6 processes or change parallel.tensor or parallel.pipeline"
    )
    check_world(ParallelConfig(tensor=2, pipeline=2, context=2), world=16)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(tensor=4), "parallel.tensor 4 does not divide the model's 2 key/value heads"),
        (ParallelConfig(pipeline=8), "parallel.pipeline 8 x parallel.virtual_pipeline 1 does not divide the "
                                     "model's 28 layers; choose a divisor of 28"),
        (ParallelConfig(pipeline=4, virtual_pipeline=3), "does not divide the model's 28 layers"),
    ],
)  # fmt: skip
def test_a_layout_must_divide_the_model(parallel: ParallelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        QWEN_1_5B.check_layout(parallel)
    QWEN_1_5B.check_layout(ParallelConfig(tensor=2, pipeline=7, virtual_pipeline=2))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (3, "engine.tensor 3 is no multiple of the model's 2 key/value heads; choose one, or a divisor of 2"),
        (8, "engine.tensor 8 does not divide the model's 12 attention heads; choose a divisor of 12"),
        (12, "engine.tensor 12 does not divide the model's 8960 ffn; choose a divisor of 8960"),
    ],
)
def test_ranks_of_an_engine_must_divide_the_model(tensor: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        QWEN_1_5B.check_engine(tensor)
    assert str(error.value) == message
    for fitting in (1, 2, 4):  # of four, two have the same key/value head
        QWEN_1_5B.check_engine(fitting)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": 0}, "parallel.pipeline must be >= 1, got 0"),
        ({"virtual_pipeline": 2}, "parallel.virtual_pipeline 2 needs parallel.pipeline > 1, got 1"),
        ({"sequence_parallel": True}, "parallel.sequence_parallel needs parallel.tensor > 1, got 1"),
        (
            {"overlap_param_gather": True},
            "parallel.overlap_param_gather needs parallel.distributed_optimizer",
        ),
    ],
)
def test_options_that_exclude_each_other(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ParallelConfig(**changes)  # type: ignore[arg-type]


def test_options_reach_megatron() -> None:
    layout = ParallelConfig(
        tensor=2, pipeline=2, virtual_pipeline=7, context=2, sequence_parallel=True, recompute="full"
    )  # fmt: skip
    found = transformer_config(QWEN_1_5B, Config(model=ModelConfig(dtype="bfloat16"), parallel=layout))
    assert (found.tensor_model_parallel_size, found.pipeline_model_parallel_size) == (2, 2)
    assert (found.virtual_pipeline_model_parallel_size, found.context_parallel_size) == (7, 2)
    assert found.sequence_parallel
    assert (found.recompute_granularity, found.recompute_method) == ("full", "uniform")
    assert found.recompute_num_layers == 1
    assert found.params_dtype == found.pipeline_dtype == torch.bfloat16
    selective = transformer_config(QWEN_1_5B, Config(parallel=ParallelConfig(recompute="selective")))
    assert selective.recompute_granularity == "selective"
    assert selective.recompute_modules == ["core_attn"]


def test_cost_counts_what_a_sequence_multiplies() -> None:
    cost = QWEN_1_5B.cost
    assert cost.token == 1_310_195_712  # the weights of the layers, without norms and biases
    assert cost.pair == 28 * 12 * 128
    assert cost.response == 1536 * 151936
    total = cost.of(np.array([1000]), np.array([10]))[0]
    assert total == 1000 * 1_310_195_712 + 1000**2 * 43008 + 10 * 233_373_696


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_context_ranks_hold_every_column_once_and_the_same_work(ranks: int) -> None:
    starts = np.array([0, 8, 32, 48]) * ranks
    held = [context.spans(starts, ranks, rank) for rank in range(ranks)]
    columns = np.concatenate([context.indices(part) for part in held])
    assert sorted(columns.tolist()) == list(range(48 * ranks))
    pairs = [sum(int(c) - s.first + 1 for s in part for c in range(s.start, s.end)) for part in held]
    assert len(set(pairs)) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_attention_of_packed_sequences_is_exact(ranks: int) -> None:
    """Against one sequence after the other in float64, value and gradient, whoever holds the columns."""
    rng = torch.Generator().manual_seed(0)
    starts = np.array([0, 8, 32, 36])
    q = torch.randn(36, 1, 4, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(36, 1, 2, 6, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    attention = CausalAttention(pg_collection=FakeGroups())
    parts, places = [], []
    for rank in range(ranks):
        held = context.spans(starts, ranks, rank)
        columns = context.HeldColumns(held, tuple(np.diff(starts).tolist()))
        mine = torch.from_numpy(context.indices(held))
        parts.append(attention(q[mine], k, v, packed_seq_params=columns))
        places.append(mine)
    found = torch.cat(parts)[torch.cat(places).argsort()]
    expected = torch.cat([dense(q[a:b], k[a:b], v[a:b]) for a, b in pairwise(starts.tolist())])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(found.shape, generator=rng, dtype=torch.float64)
    ours = torch.autograd.grad(found, (q, k, v), upstream)
    theirs = torch.autograd.grad(expected, (q, k, v), upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


class FakeGroups:
    """The process groups of a module that gathers nothing."""

    cp = None


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax of all scores under a mask: q [s, 1, h, d], k and v [s, 1, g, d] -> [s, 1, h * d]."""
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("sbhd,tbhd->bhst", q, k) / q.shape[-1] ** 0.5
    hidden = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    weights = F.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    return torch.einsum("bhst,tbhd->sbhd", weights, v).flatten(2)
