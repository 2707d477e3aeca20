"""The distributed optimizer's state in checkpoints: every rank writes and reads its own share, and no more.

megatron's format for other layouts (`fully_reshardable`) gathers the whole state on one rank or on all, and
each rank reads all of it. What is in the files is the same here: an fp32 copy and two moments of every
parameter, in its shape. But each rank describes its range of a parameter as boxes, which need no gathering.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

_STATES = ("param", "exp_avg", "exp_avg_sq")
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and size."""


def sharded(optimizer: DistributedOptimizer, model: dict[str, Any]) -> dict[str, ShardedTensor]:
    """megatron's description of this rank's share, by names of its own; `model` is that of the parameters.

    The tensors are views of the optimizer's: loading into them restores it.
    """
    tensors, _ = extract_sharded_tensors_and_factories(model)
    described = {tensor.data: tensor for tensor in nested_values(tensors)}
    found: dict[str, ShardedTensor] = {}
    for parameter, start, end in _owned(optimizer):
        states = optimizer._get_main_param_and_optimizer_states(parameter)
        whole = described[parameter]
        # Gate and up stand apart in the checkpoint.
        parts = whole.build() if isinstance(whole, ShardedTensorFactory) else [whole]
        for part in cast(list[ShardedTensor], parts):
            # Where this part of the parameter begins and ends in this rank's range of it.
            data = cast(Tensor, part.data)
            first = int(data.storage_offset() - parameter.storage_offset()) - start
            last = first + data.numel()
            for box in boxes(part.local_shape, max(-first, 0), min(last, end - start) - first):
                for name in _STATES:
                    piece = _piece(part, f"optimizer.state.{name}", states[name], first, box)
                    found[f"{piece.key} at {piece.global_offset}"] = piece
    return found


def boxes(shape: tuple[int, ...], start: int, end: int) -> Iterator[Box]:
    """The boxes of elements `start` to `end` of a tensor of `shape`, each contiguous, in memory's order.

    At most 2 x dimensions - 1.
    """
    if start >= end:
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    row = math.prod(shape[1:])
    whole, after = -(-start // row), end // row  # the rows that are there from end to end
    if whole > after:  # it is within one row
        yield from _in_row(shape, after, start - after * row, end - after * row)
        return
    yield from _in_row(shape, whole - 1, start - (whole - 1) * row, row)
    if whole < after:
        yield (whole, *[0] * (len(shape) - 1)), (after - whole, *shape[1:])
    yield from _in_row(shape, after, 0, end - after * row)


def _in_row(shape: tuple[int, ...], row: int, start: int, end: int) -> Iterator[Box]:
    return (((row, *offset), (1, *size)) for offset, size in boxes(shape[1:], start, end))


def _owned(optimizer: DistributedOptimizer) -> Iterator[tuple[Tensor, int, int]]:
    """This rank's parameters with the range of each, flattened, that it updates."""
    for buffer in optimizer.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, ranges["param"].start, ranges["param"].end


def _piece(part: ShardedTensor, prefix: str, state: Tensor, first: int, box: Box) -> ShardedTensor:
    """The `box` of `part`, which begins at `first` of the flat `state`."""
    offset, size = box
    stride = [math.prod(part.local_shape[i + 1 :]) for i in range(len(size))]
    start = first + sum(o * s for o, s in zip(offset, stride, strict=True))
    lead = part.prepend_axis_num  # axes that the checkpoint has besides, like one of the layers
    shape = (*[1] * lead, *size)
    at = [o + g for o, g in zip((*[0] * lead, *offset), part.global_offset, strict=True)]
    data = state.detach()[start : start + math.prod(size)].view(shape)
    # Of the ranks with the same shard one owns this range; of its other replicas the first is written.
    replica = (*part.replica_id[:2], 0) if isinstance(part.replica_id, tuple) else part.replica_id
    return ShardedTensor(
        f"{prefix}.{part.key}", data, data.dtype, shape, part.global_shape, tuple(at), None, replica,
        allow_shape_mismatch=part.allow_shape_mismatch,
    )  # fmt: skip
