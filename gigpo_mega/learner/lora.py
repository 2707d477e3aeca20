"""Low-rank adapters on megatron's linear layers: y = W x + alpha / rank * B (A x) with W frozen (2106.09685).

A merged layer (query, key and value; gate and up) has one A for all of its parts, and a B whose rows stand as
its weight's do. Only tensors as wide as the adapter's rank travel between tensor-parallel ranks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn import Parameter

from gigpo_mega.config import LoraConfig

NAMES = ("lora_a", "lora_b")


@dataclass
class AdaptedConfig(TransformerConfig):
    """megatron's configuration, with the scale and rank that its linear layers ask for."""

    lora_rank: int = 0
    lora_scale: float = 1.0


class Adapted(nn.Module):
    """What a linear layer of either kind has besides its weight [out, in] (here this rank's shard)."""

    config: AdaptedConfig
    tp_group: dist.ProcessGroup  # pyright: ignore[reportIncompatibleVariableOverride]  in megatron, maybe None
    weight: Parameter
    lora_a: Parameter  # [rank, in]
    lora_b: Parameter  # [out, rank]
    on: bool
    a_ways: int  # ranks that A's columns are split over

    def _attach(self, split_a: bool) -> None:
        ways = self.tp_group.size()
        out, width = self.weight.shape
        rank, dtype = self.config.lora_rank, self.weight.dtype
        self.lora_a = Parameter(torch.zeros(rank, width, dtype=dtype))
        self.lora_b = Parameter(torch.zeros(out, rank, dtype=dtype))
        self.on, self.a_ways = True, ways if split_a else 1
        split, whole = (self.lora_a, self.lora_b) if split_a else (self.lora_b, self.lora_a)
        set_tensor_model_parallel_attributes(split, ways > 1, 1 if split_a else 0, 1)
        # Under sequence parallelism it sees this rank's columns only; finalize_model_grads sums its gradient.
        setattr(whole, "sequence_parallel", self.config.sequence_parallel)  # noqa: B010

    def reset(self, name: str, seed: int, rank: int) -> None:
        """A as `nn.Linear` draws its weight, from `seed` and the layer's `name` alone; B to 0.

        `rank` is this rank's place in its tensor-parallel group.
        """
        digest = hashlib.sha256(f"{seed}.{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        width = self.lora_a.shape[1] * self.a_ways
        whole = torch.empty(self.lora_a.shape[0], width).uniform_(-1, 1, generator=generator)
        whole /= math.sqrt(width)
        with torch.no_grad():
            self.lora_a.copy_(whole.chunk(self.a_ways, dim=1)[rank % self.a_ways])
            self.lora_b.zero_()

    def _add(self, output: Tensor, input_: Tensor, by_sequence: Any, by_tensor: Any) -> Tensor:
        """`output` and the adapter's; what is between A and B crosses ranks under sequence parallelism by one
        of megatron's mappings, else by the other."""
        if not self.on:
            return output
        low = self.config.lora_scale * F.linear(input_, self.lora_a)
        cross = by_sequence if self.config.sequence_parallel else by_tensor
        return output + F.linear(cross(low, group=self.tp_group), self.lora_b)

    def merged(self) -> Tensor:
        """The weight with the adapter in it; neither changes."""
        return merge(self.weight.detach(), self.lora_a.detach(), self.lora_b.detach(), self.config.lora_scale)

    def _shards(self, name: str, axis: int, prefix: str, offsets: Any, metadata: Any) -> dict[str, Any]:
        """megatron's description of the adapter that is split over tensor-parallel ranks."""
        return make_sharded_tensors_for_checkpoint(
            {name: getattr(self, name)},
            prefix,
            {name: axis},
            offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class ColumnParallelLora(Adapted, ColumnParallelLinear):
    """A whole on every rank, B split as the weight is, by rows.

    [s, b, in] -> [s, b, out / ranks]; under sequence parallelism s are this rank's columns on the left.
    """

    def __init__(self, *sizes: int, stride: int = 1, **options: Any) -> None:
        ColumnParallelLinear.__init__(self, *sizes, stride=stride, **options)
        self._gated = stride == 2  # rows of gate, then rows of up, split each by itself
        self._attach(split_a=False)

    def forward(self, input_: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Any]:
        output, bias = ColumnParallelLinear.forward(self, input_, *rest, **options)
        gathered = gather_from_sequence_parallel_region
        return self._add(output, input_, gathered, copy_to_tensor_model_parallel_region), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None
    ) -> dict[str, Any]:
        state = ColumnParallelLinear.sharded_state_dict(self, prefix, sharded_offsets, metadata)
        split = self._shards("lora_b", 0, prefix, sharded_offsets, metadata)
        if self._gated:
            split = {k: apply_swiglu_sharded_factory(v, sharded_offsets) for k, v in split.items()}
        return state | split


class RowParallelLora(Adapted, RowParallelLinear):
    """A split as the weight is, by columns, B whole on every rank.

    [s, b, in / ranks] -> [s, b, out]; under sequence parallelism s are this rank's columns on the right.
    """

    def __init__(self, *sizes: int, **options: Any) -> None:
        RowParallelLinear.__init__(self, *sizes, **options)
        self._attach(split_a=True)

    def forward(self, input_: Tensor) -> tuple[Tensor, Any]:
        output, bias = RowParallelLinear.forward(self, input_)
        scattered = reduce_scatter_to_sequence_parallel_region
        return self._add(output, input_, scattered, reduce_from_tensor_model_parallel_region), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None
    ) -> dict[str, Any]:
        state = RowParallelLinear.sharded_state_dict(self, prefix, sharded_offsets, metadata)
        return state | self._shards("lora_a", 1, prefix, sharded_offsets, metadata)


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight [out, in] + scale * b [out, rank] @ a [rank, in], computed in float32, in the weight's type."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale).to(weight.dtype)


def adapt(parts: Any, lora: LoraConfig) -> None:
    """Put adapted linear layers into the submodules of a `local` transformer layer."""
    attention, mlp = parts.self_attention.submodules, parts.mlp.submodules
    for name in lora.targets:
        owner = attention if name in ("linear_qkv", "linear_proj") else mlp
        column = name in ("linear_qkv", "linear_fc1")
        setattr(owner, name, ColumnParallelLora if column else RowParallelLora)


def freeze(policy: nn.Module) -> None:
    """Leave gradients to the adapters alone."""
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] in NAMES)


def layers(policy: Any) -> Iterator[tuple[str, Adapted]]:
    """The adapted layers of this rank under the names that they have in the whole policy."""
    for stage in policy:
        for layer in stage.decoder.layers:
            for name, module in layer.named_modules():
                if isinstance(module, Adapted):
                    yield f"decoder.layers.{layer.layer_number - 1}.{name}", module


@contextmanager
def switched(policy: nn.Module, on: bool) -> Iterator[None]:
    """The policy with its adapters, or without: the base, which they were added to."""
    adapted = [module for module in policy.modules() if isinstance(module, Adapted)]
    before = [module.on for module in adapted]
    try:
        for module in adapted:
            module.on = on
        yield
    finally:
        for module, value in zip(adapted, before, strict=True):
            module.on = value
