"""Hugging Face directories <-> megatron-core checkpoints, bit for bit, one tensor in memory at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gigpo_mega.errors import UserError
from gigpo_mega.shape import ModelShape
from gigpo_mega.storage.files import published
from gigpo_mega.storage.manifest import LEARNER
from gigpo_mega.telemetry.progress import Bar, stage
from gigpo_mega.weights import sharded
from gigpo_mega.weights.families.mapping import ParameterMapping, entries
from gigpo_mega.weights.huggingface import HFReader, HFWriter, check_side_files, copy_side_files
from gigpo_mega.weights.sharded import Grid, ShardedReader


def import_hf(hf: Path, out: Path, grid: Grid) -> None:
    """Write the model in the Hugging Face directory `hf` as the checkpoint `out`, cut for `grid`.

    `out` also gets the configuration and the tokenizer, so that `model.path` can name it. Raises UserError,
    and leaves no `out`, if anything is missing, damaged, of another shape or cannot be written.
    """
    shape = ModelShape.from_hf(hf)
    shape.check_layout(grid, flags=True)
    reader = HFReader(hf)
    reader.check(shape)
    check_side_files(hf)
    with published(out, reader.nbytes) as partial, stage("import", _count(shape), "tensors") as bar:
        merger = _Merger(reader, shape, bar)
        (partial / LEARNER).mkdir()
        sharded.write(partial / LEARNER, shape, grid, merger.dtype, merger.read)
        copy_side_files(hf, partial)


def export_hf(checkpoint: Path, config: Path, out: Path) -> None:
    """Write the policy in `checkpoint`, an import or a run's, as the Hugging Face directory `out`.

    Configuration and tokenizer come from the Hugging Face directory `config`. Raises UserError, and leaves
    no `out`, if they do not belong together, or `checkpoint` is damaged, or `out` cannot be written.
    """
    shape = ModelShape.from_hf(config)
    reader = ShardedReader(checkpoint)
    reader.check(shape)
    check_side_files(config)
    size = sum(reader.nbytes(entry) for entry in entries(shape))
    with published(out, size) as partial, stage("export", _count(shape), "tensors") as bar:
        writer = HFWriter(partial)
        for entry in entries(shape):
            for name, tensor in zip(entry.hf, reader.separate(entry, shape), strict=True):
                writer.add(name, tensor)
            bar.advance()
        writer.close()
        copy_side_files(config, partial, writer.dtype)


class _Merger:
    """Whole megatron tensors from a Hugging Face directory; `bar` counts each once."""

    def __init__(self, reader: HFReader, shape: ModelShape, bar: Bar) -> None:
        self._reader, self._shape, self._bar = reader, shape, bar
        self._seen: set[str] = set()

    def read(self, entry: ParameterMapping) -> Tensor:
        if entry.name not in self._seen:
            self._seen.add(entry.name)
            self._bar.advance()
        return entry.layout.merge([self._reader.tensor(name) for name in entry.hf], self._shape)

    def dtype(self, entry: ParameterMapping) -> torch.dtype:
        types = {name: self._reader.dtype(name) for name in entry.hf}
        if len(set(types.values())) > 1:
            listed = ", ".join(f"{name} {dtype}" for name, dtype in types.items())
            raise UserError(
                f"{self._reader.directory}: megatron holds these in one tensor, of one type: {listed}"
            )
        return next(iter(types.values()))


def _count(shape: ModelShape) -> int:
    return sum(1 for _ in entries(shape))
