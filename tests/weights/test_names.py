"""The name tables are bijective, Hugging Face -> megatron -> Hugging Face is the identity, shards tile."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.families.mapping import entries, entry
from tests.tiny import write_policy

FAMILIES = ("qwen2", "qwen3", "llama")
SHAPE = ModelShape(
    family="qwen2", vocab=7, hidden=6, ffn=8, layers=2, heads=4, kv_heads=2, head_dim=3, rope_theta=1e4,
    norm_epsilon=1e-6, max_positions=32, tied=False, qkv_bias=True,
)  # fmt: skip


@st.composite
def splits(draw: st.DrawFn) -> tuple[ModelShape, int]:
    """Any shape, and tensor-parallel ranks that divide it."""
    ranks = draw(st.sampled_from([1, 2, 3, 4]))
    kv_heads = ranks * draw(st.integers(1, 2))
    shape = ModelShape(
        family=draw(st.sampled_from(FAMILIES)), vocab=draw(st.integers(1, 40)),
        hidden=draw(st.integers(1, 12)), ffn=ranks * draw(st.integers(1, 3)), layers=draw(st.integers(1, 3)),
        heads=kv_heads * draw(st.integers(1, 3)), kv_heads=kv_heads, head_dim=draw(st.integers(1, 4)),
        rope_theta=1e4, norm_epsilon=1e-6, max_positions=32, tied=draw(st.booleans()), qkv_bias=False,
    )  # fmt: skip
    return shape, ranks


@settings(max_examples=60)
@given(splits())
def test_every_tensor_comes_back_through_every_split(split: tuple[ModelShape, int]) -> None:
    shape, ranks = split
    generator = torch.Generator().manual_seed(0)
    for place in entries(shape):
        hf = [torch.randn(dims, generator=generator) for dims in place.hf.values()]
        whole = place.layout.merge(hf, shape)
        assert whole.shape == place.whole(ranks=1)
        shards = [place.layout.shard(whole, ranks, rank) for rank in range(ranks)]
        assert [tuple(s.shape) for s in shards] == [place.shard(ranks)] * ranks
        joined = place.layout.join(shards)
        assert joined.shape == place.whole(ranks)
        for ours, theirs in zip(place.layout.separate(joined, shape), hf, strict=True):
            assert torch.equal(ours, theirs)


@settings(max_examples=60)
@given(splits())
def test_blocks_of_all_ranks_tile_the_whole_tensor(split: tuple[ModelShape, int]) -> None:
    shape, ranks = split
    for place in entries(shape):
        whole = torch.arange(torch.Size(place.whole(ranks)).numel()).reshape(place.whole(ranks))
        tiled = torch.full_like(whole, -1)
        for rank in range(ranks):
            blocks = place.layout.shard(whole, ranks, rank).chunk(place.layout.blocks)
            for start, block in zip(place.offsets(ranks, rank), blocks, strict=True):
                region = tuple(slice(s, s + n) for s, n in zip(start, block.shape, strict=True))
                tiled[region] = block
        assert torch.equal(tiled, whole)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_transformers_each_once(family: str, tied: bool, tmp_path: Path) -> None:
    directory = write_policy(tmp_path, family, tie_word_embeddings=tied)
    shape = ModelShape.from_hf(directory)
    theirs = {name: tuple(t.shape) for name, t in load_file(directory / "model.safetensors").items()}
    ours = [name_and_dims for place in entries(shape) for name_and_dims in place.hf.items()]
    assert dict(ours) == theirs
    assert len(ours) == len(theirs)
    assert max(Counter(place.name for place in entries(shape)).values()) == 1
    assert all(entry(place.name, shape) == place for place in entries(shape))


def test_queries_stand_beside_their_key_value_head() -> None:
    q = torch.arange(12.0)[:, None]
    k, v = 100 + torch.arange(6.0)[:, None], 200 + torch.arange(6.0)[:, None]
    merged = entry("decoder.layers.0.self_attention.linear_qkv.weight", SHAPE).layout.merge([q, k, v], SHAPE)
    expected = [*range(6), 100, 101, 102, 200, 201, 202, *range(6, 12), 103, 104, 105, 203, 204, 205]
    assert merged[:, 0].tolist() == expected


def test_a_rank_has_its_part_of_gate_and_of_up() -> None:
    gate, up = torch.arange(8.0)[:, None], 100 + torch.arange(8.0)[:, None]
    place = entry("decoder.layers.0.mlp.linear_fc1.weight", SHAPE)
    shard = place.layout.shard(place.layout.merge([gate, up], SHAPE), ranks=2, rank=1)
    assert shard[:, 0].tolist() == [4, 5, 6, 7, 104, 105, 106, 107]
    assert place.offsets(2, 1) == [(4, 0), (12, 0)]


def test_vocabulary_is_padded_with_zeros_and_trimmed_again() -> None:
    place = entry("embedding.word_embeddings.weight", SHAPE)
    shards = [place.layout.shard(torch.ones(7, 6), 2, rank) for rank in range(2)]
    assert [list(s.shape) for s in shards] == [[4, 6], [4, 6]]
    assert not shards[1][3].any()
    assert place.layout.separate(place.layout.join(shards), SHAPE)[0].shape == (7, 6)


@pytest.mark.parametrize(
    ("local", "fused"),
    [("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
     ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")],
)  # fmt: skip
def test_both_layer_specifications_name_the_same_norms(local: str, fused: str) -> None:
    place = entry(f"decoder.layers.1.{local}", SHAPE)
    assert place == entry(f"decoder.layers.1.{fused}", SHAPE)
    assert place.key == f"decoder.layers.{fused}"
    assert place.layer == 1


@pytest.mark.parametrize(
    ("family", "name"),
    [("qwen2", "mlp.router.weight"), ("llama", "self_attention.linear_qkv.bias"),
     ("qwen2", "self_attention.q_layernorm.weight")],
)  # fmt: skip
def test_a_parameter_of_another_family_is_an_error(family: str, name: str) -> None:
    with pytest.raises(KeyError, match=name.split(".")[-2]):
        entry(f"decoder.layers.0.{name}", replace(SHAPE, family=family))
