"""How a megatron tensor is made of Hugging Face tensors, and along what tensor parallelism splits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gigpo_mega.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Sharding:
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


REPLICATED = Sharding(_only, _alone, axis=None)
ROW = Sharding(_only, _alone, axis=1)
VOCAB = Sharding(_only, lambda t, shape: [t[: shape.vocab]], axis=0, padded=True)
QKV = Sharding(_merge_qkv, _separate_qkv, axis=0)
GATE_UP = Sharding(lambda t, _: torch.cat(t), lambda t, _: list(t.chunk(2)), axis=0, blocks=2)

Table = dict[str, tuple[Sharding, dict[str, str]]]
"""megatron name -> sharding, and Hugging Face names with their dimensions."""
