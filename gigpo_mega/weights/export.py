"""Weights in and out of a running learner under their Hugging Face names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gigpo_mega.errors import UserError
from gigpo_mega.learner.model import ModelShape, PolicyModel
from gigpo_mega.learner.parallel import Layout
from gigpo_mega.weights.names import entry

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
                    "merges.txt", "generation_config.json", "chat_template.jinja")  # fmt: skip


def export(policy: PolicyModel, shape: ModelShape, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, whole tensor), one megatron parameter at a time, on every rank.

    All ranks of a tensor-parallel group must iterate together; memory stays at one parameter.
    """
    for name, parameter in policy.named_parameters():
        place = entry(name)
        shards = _gather(parameter.detach(), layout)
        yield from zip(place.hf, place.layout.separate(place.layout.join(shards), shape), strict=True)


def _gather(shard: Tensor, layout: Layout) -> list[Tensor]:
    if layout.tensor == 1:
        return [shard]
    shards = [torch.empty_like(shard) for _ in range(layout.tensor)]
    dist.all_gather(shards, shard.contiguous(), group=layout.tensor_group)
    return shards


def load(policy: PolicyModel, shape: ModelShape, layout: Layout, directory: Path) -> None:
    """Copy this rank's shards of the safetensors in a Hugging Face `directory` into `policy`.

    Raises UserError where a tensor is missing, unreadable or of another shape.
    """
    with torch.no_grad(), _Reader(directory) as reader:
        for name, parameter in policy.named_parameters():
            place = entry(name)
            whole = place.layout.merge([reader.tensor(n) for n in place.hf], shape)
            shard = place.layout.split(whole, layout.tensor)[layout.tensor_rank]
            if shard.shape != parameter.shape:
                raise UserError(
                    f"model.path: {directory} holds {' + '.join(place.hf)} of shape {list(whole.shape)}; its "
                    f"config.json asks for {list(parameter.shape)} at parallel.tensor {layout.tensor}"
                )
            parameter.copy_(shard)


def save(policy: PolicyModel, shape: ModelShape, layout: Layout, source: Path, directory: Path) -> None:
    """Write the policy as a Hugging Face directory, with config and tokenizer copied from `source`.

    The directory appears whole or not at all.
    """
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in export(policy, shape, layout)}
    if layout.leader:
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        for name in _TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copy(source / name, partial / name)
        config = json.loads((source / "config.json").read_text())
        config.pop("torch_dtype", None)  # the older spelling of dtype
        config["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(partial, directory)
    dist.barrier()


class _Reader:
    """Tensors of a Hugging Face directory by name, from one file or from an indexed set."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        index = directory / "model.safetensors.index.json"
        single = directory / "model.safetensors"
        try:
            if index.exists():
                files: dict[str, str] = json.loads(index.read_text())["weight_map"]
                self._open = {f: safe_open(directory / f, "pt") for f in set(files.values())}
                self._where = files
            else:
                handle = safe_open(single, "pt")
                self._open = {single.name: handle}
                self._where = dict.fromkeys(handle.keys(), single.name)
        except (FileNotFoundError, SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"model.path: cannot read the weights in {directory}: {error}") from None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    def tensor(self, name: str) -> Tensor:
        if name not in self._where:
            raise UserError(
                f"model.path: {self._directory} has no tensor {name}; is it a complete checkpoint?"
            )
        return self._open[self._where[name]].get_tensor(name)
