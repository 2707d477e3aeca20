"""Hugging Face -> megatron -> Hugging Face is the identity, and shards join to what was split."""

from __future__ import annotations

import pytest
import torch

from gigpo_mega.learner.model import ModelShape
from gigpo_mega.weights.names import entry

SHAPE = ModelShape(
    family="qwen2", vocab=7, hidden=6, ffn=8, layers=2, heads=4, kv_heads=2, head_dim=3, rope_theta=1e4,
    norm_epsilon=1e-6, max_positions=32, tied=False, qkv_bias=True,
)  # fmt: skip
ROWS = {
    "self_attention.linear_qkv.weight": (12, 6, 6),
    "self_attention.linear_qkv.bias": (12, 6, 6),
    "mlp.linear_fc1.weight": (8, 8),
    "mlp.linear_fc2.weight": (6,),
    "self_attention.linear_proj.weight": (6,),
    "input_layernorm.weight": (6,),
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ROWS)
def test_round_trip_and_shards(name: str, parts: int) -> None:
    place = entry(f"decoder.layers.1.{name}")
    generator = torch.Generator().manual_seed(0)
    wide = 1 if name.endswith(("bias", "layernorm.weight")) else 8
    hf = [torch.randn(*((r,) if wide == 1 else (r, wide)), generator=generator) for r in ROWS[name]]
    whole = place.layout.merge(hf, SHAPE)
    shards = place.layout.split(whole, parts)
    joined = place.layout.join(shards)
    assert len(shards) == parts
    assert torch.equal(joined, whole)
    for ours, theirs in zip(place.layout.separate(joined, SHAPE), hf, strict=True):
        assert torch.equal(ours, theirs)
    assert all(n.startswith("model.layers.1.") for n in place.hf)


def test_queries_stand_beside_their_key_value_head() -> None:
    q = torch.arange(12.0)[:, None]
    k, v = 100 + torch.arange(6.0)[:, None], 200 + torch.arange(6.0)[:, None]
    merged = entry("decoder.layers.0.self_attention.linear_qkv.weight").layout.merge([q, k, v], SHAPE)
    expected = [*range(6), 100, 101, 102, 200, 201, 202, *range(6, 12), 103, 104, 105, 203, 204, 205]
    assert merged[:, 0].tolist() == expected


def test_vocabulary_is_padded_for_the_split_and_trimmed_again() -> None:
    place = entry("embedding.word_embeddings.weight")
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    shards = place.layout.split(table, 2)
    assert [list(s.shape) for s in shards] == [[4, 3], [4, 3]]
    assert not shards[1][3].any()
    (back,) = place.layout.separate(place.layout.join(shards), SHAPE)
    assert torch.equal(back, table)


def test_an_unknown_parameter_is_an_error() -> None:
    with pytest.raises(KeyError, match="router"):
        entry("decoder.layers.0.mlp.router.weight")
