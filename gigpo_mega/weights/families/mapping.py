"""megatron-core parameter names <-> Hugging Face names, and how each tensor is laid out and split.

Pure: strings and shapes in, strings and tensors out. One table per family, which conversion, start-up and
weight pushes share. The megatron names are those of checkpoints: where the `local` specification has a norm
of its own, they say where Transformer Engine keeps it, fused into the linear layer after it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.families.llama import LLAMA, MODEL
from gigpo_mega.weights.families.qwen2 import QWEN2
from gigpo_mega.weights.families.qwen3 import QWEN3
from gigpo_mega.weights.families.sharding import REPLICATED, ROW, Sharding, Table


@dataclass(frozen=True, slots=True)
class ParameterMapping:
    """One megatron parameter: the Hugging Face tensors that it is made of, and its layout."""

    name: str
    hf: dict[str, tuple[int, ...]]  # name -> shape, in the order of `merge`
    layout: Sharding

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


def entries(shape: ModelShape) -> Iterator[ParameterMapping]:
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
) -> Iterator[tuple[ParameterMapping, ParameterMapping]]:
    """A [rank, in] and B [out, rank] of every adapter; B is laid out as its weight, under the same names."""
    for place in entries(shape):
        stem, _, last = place.name.rpartition(".")
        if last != "weight" or stem.rpartition(".")[2] not in targets:
            continue
        name, (_, width) = next(iter(place.hf.items()))
        by_row = place.layout is ROW
        high = {hf: (rows, rank) for hf, (rows, _) in place.hf.items()}
        yield (
            ParameterMapping(f"{stem}.lora_a", {name: (rank, width)}, ROW if by_row else REPLICATED),
            ParameterMapping(f"{stem}.lora_b", high, REPLICATED if by_row else place.layout),
        )


def entry(name: str, shape: ModelShape) -> ParameterMapping:
    """The entry of a megatron parameter name, in the spelling of either layer specification.

    Raises KeyError for a name that no policy of this family has.
    """
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        layout, hf = MODEL[name]
        return ParameterMapping(name, _shapes(hf, shape), layout)
    local = _LOCAL.get(match[2], match[2])
    layout, hf = _TABLES[shape.family][local]
    named = {f"model.layers.{match[1]}.{n}": dims for n, dims in _shapes(hf, shape).items()}
    return ParameterMapping(f"decoder.layers.{match[1]}.{local}", named, layout)


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


_TABLES: dict[str, Table] = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}

_LOCAL = {  # what the `local` specification calls its norms
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_IN_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
