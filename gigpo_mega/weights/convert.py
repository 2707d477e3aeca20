"""Hugging Face directories <-> megatron-core checkpoints, bit for bit, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gigpo_mega.errors import UserError
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.telemetry.progress import stage
from gigpo_mega.weights import sharded
from gigpo_mega.weights.huggingface import HFReader, HFWriter, copy_side_files
from gigpo_mega.weights.names import Entry, entries
from gigpo_mega.weights.publish import published
from gigpo_mega.weights.sharded import FOLDER, Grid, ShardedReader


def import_hf(hf: Path, out: Path, grid: Grid) -> None:
    """Write the model in the Hugging Face directory `hf` as the checkpoint `out`, cut for `grid`.

    `out` also gets the configuration and the tokenizer, so that `model.path` can name it. Raises UserError,
    and leaves no `out`, where anything is missing, damaged, of another shape or cannot be written.
    """
    shape = ModelShape.from_hf(hf)
    grid.check(shape)
    reader = HFReader(hf)
    reader.check(shape)
    with published(out, reader.nbytes) as partial, stage("import", _count(shape), "tensors") as bar:
        read = _Progress(lambda entry: _merged(reader, entry, shape), bar.advance)
        (partial / FOLDER).mkdir()
        sharded.write(partial / FOLDER, shape, grid, lambda entry: _dtype(reader, entry), read)
        copy_side_files(hf, partial)


def export_hf(checkpoint: Path, config: Path, out: Path) -> None:
    """Write the policy in `checkpoint`, an import or a run's, as the Hugging Face directory `out`.

    Configuration and tokenizer come from the Hugging Face directory `config`. Raises UserError, and leaves
    no `out`, where they do not belong together, or `checkpoint` is damaged, or `out` cannot be written.
    """
    shape = ModelShape.from_hf(config)
    reader = ShardedReader(checkpoint)
    reader.check(shape)
    size = sum(reader.nbytes(entry) for entry in entries(shape))
    with published(out, size) as partial, stage("export", _count(shape), "tensors") as bar:
        writer = HFWriter(partial)
        for entry in entries(shape):
            for name, tensor in zip(entry.hf, reader.separate(entry, shape), strict=True):
                writer.add(name, tensor)
            bar.advance()
        writer.close()
        copy_side_files(config, partial, writer.dtype)


class _Progress:
    """Calls `read`, and `advance` where an entry is read for the first time."""

    def __init__(self, read: Callable[[Entry], Tensor], advance: Callable[[], None]) -> None:
        self._read, self._advance = read, advance
        self._seen: set[str] = set()

    def __call__(self, entry: Entry) -> Tensor:
        if entry.name not in self._seen:
            self._seen.add(entry.name)
            self._advance()
        return self._read(entry)


def _merged(reader: HFReader, entry: Entry, shape: ModelShape) -> Tensor:
    return entry.layout.merge([reader.tensor(name) for name in entry.hf], shape)


def _dtype(reader: HFReader, entry: Entry) -> torch.dtype:
    types = {name: reader.dtype(name) for name in entry.hf}
    if len(set(types.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in types.items())
        raise UserError(f"{reader.directory}: megatron holds these in one tensor, of one type: {listed}")
    return next(iter(types.values()))


def _count(shape: ModelShape) -> int:
    return sum(1 for _ in entries(shape))
