"""megatron-core parameter names <-> Hugging Face names, and how each tensor is laid out and split.

Pure: strings and shapes in, strings and tensors out. One table per family, which conversion, start-up and
weight pushes share. The megatron names are those of checkpoints: where the `local` specification has a norm
of its own, they say where Transformer Engine keeps it, fused into the linear layer after it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gigpo_mega.learner.model import ModelShape


@dataclass(frozen=True, slots=True)
class Layout:
    """How one megatron tensor is made of Hugging Face tensors, and along what it is split.

    `blocks` consecutive parts of `axis` are split each by itself; None: every rank holds the whole.
    """

    merge: Callable[[list[Tensor], ModelShape], Tensor]  # whole HF tensors -> whole megatron tensor
    separate: Callable[[Tensor, ModelShape], list[Tensor]]  # the inverse
    axis: int | None
    blocks: int = 1
    padded: bool = False  # with zeros along the axis, to a multiple of the ranks

    def pad(self, whole: Tensor, ranks: int) -> Tensor:
        """The whole tensor as `ranks` tensor-parallel ranks hold it together."""
        missing = -whole.shape[0] % ranks if self.padded else 0
        return torch.cat([whole, whole.new_zeros(missing, *whole.shape[1:])]) if missing else whole

    def shard(self, whole: Tensor, ranks: int, rank: int) -> Tensor:
        """The part of one of `ranks` tensor-parallel ranks."""
        if self.axis is None:
            return whole
        blocks = self.pad(whole, ranks).chunk(self.blocks, self.axis)
        return torch.cat([block.chunk(ranks, self.axis)[rank] for block in blocks], self.axis)

    def join(self, shards: list[Tensor]) -> Tensor:
        """All ranks' parts -> the whole tensor, padding included."""
        if self.axis is None:
            return shards[0]
        blocks = zip(*(shard.chunk(self.blocks, self.axis) for shard in shards), strict=True)
        return torch.cat([part for block in blocks for part in block], self.axis)


@dataclass(frozen=True, slots=True)
class Entry:
    """One megatron parameter: the Hugging Face tensors that it is made of, and its layout."""

    name: str
    hf: dict[str, tuple[int, ...]]  # name -> shape, in the order of `merge`
    layout: Layout

    @property
    def layer(self) -> int | None:
        """The transformer layer it belongs to."""
        match = _IN_LAYER.fullmatch(self.name)
        return int(match[1]) if match else None

    @property
    def key(self) -> str:
        """Its name in a megatron checkpoint, where the layers of a kind are one tensor [layers, ...]."""
        return _IN_LAYER.sub(r"decoder.layers.\2", self.name)

    def whole(self, ranks: int) -> tuple[int, ...]:
        """The shape of the whole megatron tensor as `ranks` tensor-parallel ranks hold it together."""
        shapes = list(self.hf.values())
        rows = sum(shape[0] for shape in shapes)
        return (math.ceil(rows / ranks) * ranks if self.layout.padded else rows, *shapes[0][1:])

    def shard(self, ranks: int) -> tuple[int, ...]:
        """The shape of one rank's part."""
        axis = self.layout.axis
        return tuple(n // ranks if i == axis else n for i, n in enumerate(self.whole(ranks)))

    def offsets(self, ranks: int, rank: int) -> list[tuple[int, ...]]:
        """Where in the whole tensor the blocks of `rank`'s part begin."""
        axis, whole = self.layout.axis, self.whole(ranks)
        if axis is None:
            return [(0,) * len(whole)]
        size = whole[axis] // self.layout.blocks
        starts = (block * size + rank * size // ranks for block in range(self.layout.blocks))
        return [tuple(start if i == axis else 0 for i in range(len(whole))) for start in starts]


def entries(shape: ModelShape) -> Iterator[Entry]:
    """Every parameter of a policy of `shape`, in the order of its forward pass."""
    yield entry("embedding.word_embeddings.weight", shape)
    for layer in range(shape.layers):
        for name in _TABLES[shape.family]:
            yield entry(f"decoder.layers.{layer}.{name}", shape)
    yield entry("decoder.final_layernorm.weight", shape)
    if not shape.tied:
        yield entry("output_layer.weight", shape)


def adapter_entries(
    shape: ModelShape, rank: int, targets: Sequence[str]
) -> Iterator[tuple[Entry, Entry]]:
    """A [rank, in] and B [out, rank] of every adapter; B is laid out as its weight, under the same names."""
    for place in entries(shape):
        stem, _, last = place.name.rpartition(".")
        if last != "weight" or stem.rpartition(".")[2] not in targets:
            continue
        name, (_, width) = next(iter(place.hf.items()))
        by_row = place.layout is _ROW
        high = {hf: (rows, rank) for hf, (rows, _) in place.hf.items()}
        yield (
            Entry(f"{stem}.lora_a", {name: (rank, width)}, _ROW if by_row else _REPLICATED),
            Entry(f"{stem}.lora_b", high, _REPLICATED if by_row else place.layout),
        )


def entry(name: str, shape: ModelShape) -> Entry:
    """The entry of a megatron parameter name, in the spelling of either layer specification.

    Raises KeyError for a name that no policy of this family has.
    """
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        layout, hf = _MODEL[name]
        return Entry(name, _shapes(hf, shape), layout)
    local = _LOCAL.get(match[2], match[2])
    layout, hf = _TABLES[shape.family][local]
    named = {f"model.layers.{match[1]}.{n}": dims for n, dims in _shapes(hf, shape).items()}
    return Entry(f"decoder.layers.{match[1]}.{local}", named, layout)


def _shapes(hf: dict[str, str], shape: ModelShape) -> dict[str, tuple[int, ...]]:
    sizes = {
        "vocab": shape.vocab,
        "hidden": shape.hidden,
        "ffn": shape.ffn,
        "head": shape.head_dim,
        "q": shape.heads * shape.head_dim,
        "kv": shape.kv_heads * shape.head_dim,
    }
    return {name: tuple(sizes[dim] for dim in dims.split()) for name, dims in hf.items()}


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


_REPLICATED = Layout(_only, _alone, axis=None)
_ROW = Layout(_only, _alone, axis=1)
_VOCAB = Layout(_only, _trim_vocab, axis=0, padded=True)
_QKV = Layout(_merge_qkv, _separate_qkv, axis=0)
_GATE_UP = Layout(lambda t, _: torch.cat(t), lambda t, _: list(t.chunk(2)), axis=0, blocks=2)

Table = dict[str, tuple[Layout, dict[str, str]]]  # megatron name -> layout, Hugging Face names and dimensions

_MODEL: Table = {
    "embedding.word_embeddings.weight": (_VOCAB, {"model.embed_tokens.weight": "vocab hidden"}),
    "decoder.final_layernorm.weight": (_REPLICATED, {"model.norm.weight": "hidden"}),
    "output_layer.weight": (_VOCAB, {"lm_head.weight": "vocab hidden"}),
}
_LLAMA: Table = {
    "self_attention.linear_qkv.layer_norm_weight": (_REPLICATED, {"input_layernorm.weight": "hidden"}),
    "self_attention.linear_qkv.weight": (_QKV, {
        "self_attn.q_proj.weight": "q hidden",
        "self_attn.k_proj.weight": "kv hidden",
        "self_attn.v_proj.weight": "kv hidden",
    }),
    "self_attention.linear_proj.weight": (_ROW, {"self_attn.o_proj.weight": "hidden q"}),
    "mlp.linear_fc1.layer_norm_weight": (_REPLICATED, {"post_attention_layernorm.weight": "hidden"}),
    "mlp.linear_fc1.weight": (_GATE_UP, {
        "mlp.gate_proj.weight": "ffn hidden",
        "mlp.up_proj.weight": "ffn hidden",
    }),
    "mlp.linear_fc2.weight": (_ROW, {"mlp.down_proj.weight": "hidden ffn"}),
}  # fmt: skip
_QWEN2: Table = _LLAMA | {
    "self_attention.linear_qkv.bias": (_QKV, {
        "self_attn.q_proj.bias": "q",
        "self_attn.k_proj.bias": "kv",
        "self_attn.v_proj.bias": "kv",
    }),
}  # fmt: skip
_QWEN3: Table = _LLAMA | {
    "self_attention.q_layernorm.weight": (_REPLICATED, {"self_attn.q_norm.weight": "head"}),
    "self_attention.k_layernorm.weight": (_REPLICATED, {"self_attn.k_norm.weight": "head"}),
}
_TABLES: dict[str, Table] = {"llama": _LLAMA, "qwen2": _QWEN2, "qwen3": _QWEN3}

_LOCAL = {  # what the `local` specification calls its norms
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_IN_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
