"""megatron-core checkpoints (`torch_dist`) written and read by one process, one tensor in memory at a time.

The writer plays the tensor- and pipeline-parallel ranks of a save in turn: one file each, in which the rank
that loads the checkpoint at the same layout finds its part. Any other layout loads it too, because the
tensors in it are whole; of the layout they keep only the padding of the vocabulary.
"""

from __future__ import annotations

import gigpo_mega.learner  # noqa: F401  prepares megatron

# isort: split
import functools
import json
import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from gigpo_mega.config import LoraConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import lora
from gigpo_mega.shape import ModelShape
from gigpo_mega.storage.manifest import LEARNER, STATE
from gigpo_mega.weights.families.mapping import ParameterMapping, entries

_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


@dataclass(frozen=True, slots=True)
class Grid:
    """The layout that a checkpoint is cut for."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1

    def stage(self, entry: ParameterMapping, shape: ModelShape) -> int:
        """The pipeline rank that holds a parameter."""
        if entry.layer is None:
            return 0 if entry.name.startswith("embedding") else self.pipeline - 1
        per_stage = shape.layers // (self.pipeline * self.virtual_pipeline)
        return entry.layer // per_stage % self.pipeline


def write(
    directory: Path,
    shape: ModelShape,
    grid: Grid,
    dtype: Callable[[ParameterMapping], torch.dtype],
    read: Callable[[ParameterMapping], Tensor],
) -> None:
    """Write the checkpoint of a policy of `shape` into the empty `directory`.

    `dtype` tells the type of a whole megatron tensor beforehand; `read` makes it, and is called again if
    several ranks share it.
    """
    planner = _Planner(shape, grid.tensor, read)
    plans = [
        SavePlan([item for entry in entries(shape) if grid.stage(entry, shape) == stage
                  for item in planner.items(entry, rank, dtype(entry))])
        for stage in range(grid.pipeline)
        for rank in range(grid.tensor)
    ]  # fmt: skip
    plans, metadata = create_default_global_save_plan(plans)
    writer = FileSystemWriter(directory)
    writer.set_up_storage_writer(is_coordinator=True)
    plans = writer.prepare_global_plan([writer.prepare_local_plan(plan) for plan in plans])
    writer.finish(metadata, [writer.write_data(plan, planner).wait() for plan in plans])
    torch.save({}, directory / COMMON_STATE_FNAME)
    save_config(CheckpointingConfig("torch_dist"), str(directory))


class _Planner(DefaultSavePlanner):
    """Makes each rank's chunks only when the writer asks for them."""

    def __init__(self, shape: ModelShape, ranks: int, read: Callable[[ParameterMapping], Tensor]) -> None:
        super().__init__()
        self._shape, self._ranks = shape, ranks
        self._regions: dict[MetadataIndex, tuple[str, tuple[slice, ...]]] = {}
        self._entries: dict[str, ParameterMapping] = {}

        @functools.lru_cache(maxsize=1)  # the blocks of a rank come one after the other
        def whole(name: str) -> Tensor:
            entry = self._entries[name]
            return entry.layout.pad(read(entry), ranks)

        self._whole = whole

    def items(self, entry: ParameterMapping, rank: int, dtype: torch.dtype) -> Iterator[WriteItem]:
        """The chunks of `entry` that tensor-parallel `rank` writes; a replicated one is the first rank's."""
        layout = entry.layout
        if layout.axis is None and rank:
            return
        self._entries[entry.name] = entry
        size = [n // layout.blocks if i == layout.axis else n for i, n in enumerate(entry.shard(self._ranks))]
        for start in entry.offsets(self._ranks, rank):
            chunk, whole = _stacked(entry, start, tuple(size), self._shape, entry.whole(self._ranks))
            index = MetadataIndex(entry.key, chunk.offsets)
            self._regions[index] = entry.name, _region(start, size)
            data = TensorWriteData(chunk, TensorProperties(dtype), whole)
            yield WriteItem(index, WriteItemType.SHARD, tensor_data=data)

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        name, region = self._regions[write_item.index]
        assert write_item.tensor_data is not None
        return self._whole(name)[region].reshape(write_item.tensor_data.chunk.sizes)


class ShardedReader:
    """The megatron tensors of a checkpoint, whole, whatever layout wrote it; adapters are merged into theirs.

    Raises UserError if `checkpoint` is none, or a file of it is absent or cut off.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, folder = checkpoint, checkpoint / LEARNER
        self._reader = FileSystemReader(folder)
        try:
            metadata = self._reader.read_metadata()
        except FileNotFoundError:
            raise UserError(
                f"{checkpoint} holds no {LEARNER}/.metadata; give what `gigpo-mega convert import` "
                "wrote, or one iteration of a run, checkpoints/iteration_*"
            ) from None
        except _UNREADABLE as error:
            raise UserError(f"cannot read {folder}/.metadata: {error!r}") from None
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors = {
            key: found
            for key, found in metadata.state_dict_metadata.items()
            if isinstance(found, TensorStorageMetadata)
        }
        ends: dict[str, int] = {}
        for place in metadata.storage_data.values():
            ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
        for name, end in ends.items():
            size = (folder / name).stat().st_size if (folder / name).exists() else None
            if size is None or size < end:
                reason = "is missing" if size is None else f"is cut off: {size} of {end} bytes"
                raise UserError(f"{folder / name} {reason}; use another checkpoint")

    def check(self, shape: ModelShape) -> None:
        """Raise UserError unless the checkpoint is one of a policy of `shape`."""
        if shape.tied == ("output_layer.weight" in self._tensors):
            holds = "holds an" if shape.tied else "lacks the"
            raise UserError(
                f"config.json says tie_word_embeddings {str(shape.tied).lower()}, but "
                f"{self.checkpoint} {holds} output_layer.weight; give the config of its own model"
            )
        for entry in entries(shape):
            found = self._tensors.get(entry.key)
            size = None if found is None else tuple(found.size)
            wanted = self._size(entry, shape)
            if size != wanted:
                raise UserError(
                    f"{self.checkpoint} holds {entry.key} of shape "
                    f"{size and list(size)}; config.json asks for {list(wanted)} ({shape.described})"
                )

    def dtype(self, entry: ParameterMapping) -> torch.dtype:
        """The type of one tensor."""
        return self._tensors[entry.key].properties.dtype

    def nbytes(self, entry: ParameterMapping) -> int:
        """The bytes of one tensor."""
        return math.prod(entry.whole(ranks=1)) * self.dtype(entry).itemsize

    def separate(self, entry: ParameterMapping, shape: ModelShape) -> list[Tensor]:
        """The Hugging Face tensors that one megatron tensor is made of."""
        return entry.layout.separate(self.tensor(entry, shape), shape)

    @property
    def adapted(self) -> bool:
        """Whether there are adapters besides the weights."""
        return any(key.endswith(lora.NAMES) for key in self._tensors)

    def tensor(self, entry: ParameterMapping, shape: ModelShape) -> Tensor:
        """One whole megatron tensor, padding included; raises UserError if its bytes are damaged."""
        weight = self._read(entry, entry.key, self._size(entry, shape), shape)
        low, high = (entry.key.removesuffix("weight") + name for name in lora.NAMES)
        if low not in self._tensors:
            return weight
        a, b = (self._read(entry, key, tuple(self._tensors[key].size), shape) for key in (low, high))
        return lora.merge(weight, a, b, self._scale)

    @functools.cached_property
    def _scale(self) -> float:
        """What an adapter's product counts, as the run that wrote the checkpoint noted it."""
        try:
            state = json.loads((self.checkpoint / STATE).read_text())
            return LoraConfig(**state["shape"]["lora"]).scale
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.checkpoint / STATE} does not tell lora.alpha: {reason}") from None

    def _read(self, entry: ParameterMapping, key: str, size: tuple[int, ...], shape: ModelShape) -> Tensor:
        """The part of the tensor `key` of `size` that is of the layer of `entry`."""
        size = size[0 if entry.layer is None else 1 :]
        chunk, _ = _stacked(entry, (0,) * len(size), size, shape, size)
        out = torch.empty(chunk.sizes, dtype=self._tensors[key].properties.dtype)
        items = create_read_items_for_chunk_list(key, self._tensors[key], [chunk])
        missing = out.numel() - sum(math.prod(item.lengths) for item in items)
        if missing:
            raise UserError(f"{self.checkpoint} lacks {missing} numbers of {entry.name}")
        try:
            self._reader.read_data(LoadPlan(items), _Into(out)).wait()
        except _UNREADABLE as error:
            raise UserError(f"{self.checkpoint}: {entry.name} is damaged: {error!r}") from None
        return out.reshape(size)

    def _size(self, entry: ParameterMapping, shape: ModelShape) -> tuple[int, ...]:
        """The shape in the file; the vocabulary may be padded as its writer's layout asked for."""
        whole = entry.whole(ranks=1)
        found = self._tensors.get(entry.key)
        if entry.layout.padded and found is not None and found.size[0] >= whole[0]:
            return (found.size[0], *whole[1:])
        return whole if entry.layer is None else (shape.layers, *whole)


class _Into(DefaultLoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self._out = out

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        return self._out[_region(read_item.dest_offsets, read_item.lengths)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass


def _region(start: Iterable[int], size: Iterable[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))


def _stacked(
    entry: ParameterMapping,
    start: tuple[int, ...],
    size: tuple[int, ...],
    shape: ModelShape,
    whole: tuple[int, ...],
) -> tuple[ChunkStorageMetadata, torch.Size]:
    """A chunk within the tensor of the file, [layers, ...] for a layer's parameter, and that one's shape."""
    if entry.layer is None:
        return ChunkStorageMetadata(torch.Size(start), torch.Size(size)), torch.Size(whole)
    chunk = ChunkStorageMetadata(torch.Size((entry.layer, *start)), torch.Size((1, *size)))
    return chunk, torch.Size((shape.layers, *whole))
