"""megatron-core parameter names <-> Hugging Face names, and how each tensor is laid out and split.

Pure: strings and shapes in, strings and tensors out. Dense Qwen2 and Llama policies share one table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gigpo_mega.learner.model import ModelShape


@dataclass(frozen=True, slots=True)
class Layout:
    """How one megatron tensor is made of Hugging Face tensors, and along what it is split."""

    merge: Callable[[list[Tensor], ModelShape], Tensor]  # whole HF tensors -> whole megatron tensor
    separate: Callable[[Tensor, ModelShape], list[Tensor]]  # the inverse
    split: Callable[[Tensor, int], list[Tensor]]  # whole megatron tensor -> tensor-parallel shards
    join: Callable[[list[Tensor]], Tensor]  # the inverse


@dataclass(frozen=True, slots=True)
class Entry:
    """One megatron parameter: its Hugging Face names and its layout."""

    hf: tuple[str, ...]
    layout: Layout


def _only(tensors: list[Tensor], _: ModelShape) -> Tensor:
    return tensors[0]


def _alone(tensor: Tensor, _: ModelShape) -> list[Tensor]:
    return [tensor]


def _merge_qkv(tensors: list[Tensor], shape: ModelShape) -> Tensor:
    """q, k, v [rows, ...] -> [kv_heads * (heads / kv_heads + 2) * head_dim, ...], one group per kv head."""
    q, k, v = (t.unflatten(0, (shape.kv_heads, -1)) for t in tensors)
    return torch.cat([q, k, v], dim=1).flatten(0, 1)


def _separate_qkv(tensor: Tensor, shape: ModelShape) -> list[Tensor]:
    queries = shape.heads // shape.kv_heads * shape.head_dim
    parts = tensor.unflatten(0, (shape.kv_heads, -1)).split([queries, shape.head_dim, shape.head_dim], dim=1)
    return [part.flatten(0, 1) for part in parts]


def _trim_vocab(tensor: Tensor, shape: ModelShape) -> list[Tensor]:
    return [tensor[: shape.vocab]]


def _split_vocab(tensor: Tensor, parts: int) -> list[Tensor]:
    missing = -tensor.shape[0] % parts
    return list(torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]).chunk(parts))


def _split_pair(tensor: Tensor, parts: int) -> list[Tensor]:
    """[gate; up] -> per rank [gate shard; up shard]."""
    gate, up = tensor.chunk(2)
    return [torch.cat(pair) for pair in zip(gate.chunk(parts), up.chunk(parts), strict=True)]


def _join_pair(shards: list[Tensor]) -> Tensor:
    pairs = [s.chunk(2) for s in shards]
    return torch.cat([p[0] for p in pairs] + [p[1] for p in pairs])


_REPLICATED = Layout(_only, _alone, lambda t, n: [t] * n, lambda s: s[0])
_ROW = Layout(_only, _alone, lambda t, n: list(t.chunk(n, dim=1)), lambda s: torch.cat(s, dim=1))
_VOCAB = Layout(_only, _trim_vocab, _split_vocab, torch.cat)
_QKV = Layout(_merge_qkv, _separate_qkv, lambda t, n: list(t.chunk(n)), torch.cat)
_GATE_UP = Layout(lambda t, _: torch.cat(t), lambda t, _: list(t.chunk(2)), _split_pair, _join_pair)

_ATTENTION, _MLP = "self_attn.{}_proj", "mlp.{}_proj"
_QKV_NAMES = tuple(_ATTENTION.format(x) for x in "qkv")

_LAYER: dict[str, tuple[tuple[str, ...], Layout]] = {
    "input_layernorm.weight": (("input_layernorm.weight",), _REPLICATED),
    "self_attention.linear_qkv.layer_norm_weight": (("input_layernorm.weight",), _REPLICATED),
    "self_attention.linear_qkv.weight": (tuple(f"{n}.weight" for n in _QKV_NAMES), _QKV),
    "self_attention.linear_qkv.bias": (tuple(f"{n}.bias" for n in _QKV_NAMES), _QKV),
    "self_attention.linear_proj.weight": (("self_attn.o_proj.weight",), _ROW),
    "pre_mlp_layernorm.weight": (("post_attention_layernorm.weight",), _REPLICATED),
    "mlp.linear_fc1.layer_norm_weight": (("post_attention_layernorm.weight",), _REPLICATED),
    "mlp.linear_fc1.weight": (tuple(_MLP.format(x) + ".weight" for x in ("gate", "up")), _GATE_UP),
    "mlp.linear_fc2.weight": (("mlp.down_proj.weight",), _ROW),
}
_MODEL: dict[str, tuple[tuple[str, ...], Layout]] = {
    "embedding.word_embeddings.weight": (("model.embed_tokens.weight",), _VOCAB),
    "decoder.final_layernorm.weight": (("model.norm.weight",), _REPLICATED),
    "output_layer.weight": (("lm_head.weight",), _VOCAB),
}
_IN_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def entry(name: str) -> Entry:
    """The table's entry for a megatron parameter name; raises KeyError for a name that no policy has."""
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        return Entry(*_MODEL[name])
    names, layout = _LAYER[match[2]]
    return Entry(tuple(f"model.layers.{match[1]}.{n}" for n in names), layout)
