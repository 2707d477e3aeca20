"""Weights in and out of a running learner under their Hugging Face names."""

from __future__ import annotations

import gigpo_mega.learner  # noqa: F401  prepares megatron

# isort: split
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn import Parameter

from gigpo_mega.errors import UserError
from gigpo_mega.learner import lora
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.model import Policy
from gigpo_mega.shape import ModelShape
from gigpo_mega.storage.files import published
from gigpo_mega.storage.manifest import LEARNER
from gigpo_mega.weights.families.mapping import ParameterMapping, entries, entry
from gigpo_mega.weights.huggingface import HFReader, HFWriter, copy_side_files
from gigpo_mega.weights.sharded import ShardedReader

_EXTRA = "_extra_state"


def export(policy: Policy, shape: ModelShape, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, whole tensor), one megatron parameter at a time, on every rank.

    Adapters are merged into what is yielded; the policy stays as it is. All ranks of a copy of the policy
    (tensor x pipeline) must iterate together; memory stays at one parameter. Raises UserError, on every rank,
    for a weight that is not finite.
    """
    held: dict[str, Callable[[], Tensor]] = {p.name: w.detach for p, w in parameters(policy, shape)}
    held |= {f"{name}.weight": layer.merged for name, layer in lora.layers(policy)}
    pipeline = Pipeline(held, layout, policy.config.params_dtype)
    for place in entries(shape):
        shards = gather(pipeline.shard(place, layout.tensor), layout)
        separated = place.layout.separate(place.layout.join(shards), shape)
        for name, tensor in zip(place.hf, separated, strict=True):
            if not torch.stack(tensor.aminmax()).isfinite().all():  # `isfinite` of all would copy it twice
                raise UserError(f"the policy's {name} is not finite; resume from a checkpoint before that")
            yield name, tensor


def load(policy: Policy, shape: ModelShape, layout: Layout, directory: Path) -> None:
    """Copy this rank's part of the weights in `directory` into `policy`.

    `directory` is a Hugging Face directory, or a checkpoint that `gigpo-mega convert import` wrote for
    any layout. Raises UserError if it is damaged or of another shape.
    """
    if (directory / LEARNER).is_dir():
        _load_checkpoint(policy, shape, layout, directory)
        return
    reader = HFReader(directory)
    reader.check(shape)
    with torch.no_grad():
        for place, parameter in parameters(policy, shape):
            whole = place.layout.merge([reader.tensor(name) for name in place.hf], shape)
            parameter.copy_(place.layout.shard(whole, layout.tensor, layout.tensor_rank))


def save(policy: Policy, shape: ModelShape, layout: Layout, source: Path, directory: Path) -> None:
    """Write the policy as a Hugging Face directory, with config and tokenizer copied from `source`.

    The directory appears whole or not at all.
    """
    weights = export(policy, shape, layout)
    if layout.leader:
        with published(directory, replace=True) as partial:
            writer = HFWriter(partial)
            for name, tensor in weights:
                writer.add(name, tensor)
            writer.close()
            copy_side_files(source, partial, writer.dtype)
    else:
        for _ in weights:
            pass
    dist.barrier()


def parameters(policy: Policy, shape: ModelShape) -> Iterator[tuple[ParameterMapping, Parameter]]:
    """This rank's parameters but adapters', with the layers numbered through the whole policy."""
    for stage in policy:
        layers = stage.decoder.layers
        for name, parameter in stage.named_parameters():
            if name.endswith(lora.NAMES):
                continue
            head, _, rest = name.partition("decoder.layers.")
            if not head:
                local, _, inner = rest.partition(".")
                number = cast(TransformerLayer, layers[int(local)]).layer_number - 1
                name = f"decoder.layers.{number}.{inner}"
            if name == "output_layer.weight" and shape.tied:
                name = "embedding.word_embeddings.weight"  # the last pipeline stage's copy
            yield entry(name, shape), parameter


def _load_checkpoint(policy: Policy, shape: ModelShape, layout: Layout, directory: Path) -> None:
    reader = ShardedReader(directory)
    reader.check(shape)
    if reader.adapted:
        raise UserError(
            f"model.path: {directory} holds adapters besides its weights; merge them first with "
            "gigpo-mega convert export, or resume its run"
        )
    metadata = {"dp_cp_group": layout.replica_group}
    stages = {str(i): stage for i, stage in enumerate(policy)}
    # Extra states are empty but for Transformer Engine's FP8 scales, which belong to no weight.
    wanted = {
        i: {name: part for name, part in stage.sharded_state_dict(metadata=metadata).items()
            if not name.endswith((_EXTRA, *lora.NAMES))}
        for i, stage in stages.items()
    }  # fmt: skip
    try:
        loaded = cast(dict[str, Any], dist_checkpointing.load(wanted, str(directory / LEARNER)))
    except (Exception, CheckpointException) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model.path: cannot read {directory}: {reason}") from error
    for i, stage in stages.items():
        missing = stage.load_state_dict(loaded[i], strict=False).missing_keys
        expected = (_EXTRA, *lora.NAMES)
        assert all(name.endswith(expected) for name in missing), f"not in the checkpoint: {missing}"


class Pipeline:
    """The parameters of all pipeline stages; each comes from the first stage that holds it."""

    def __init__(self, held: dict[str, Callable[[], Tensor]], layout: Layout, dtype: torch.dtype) -> None:
        self._held, self._group = held, layout.pipeline_group
        self._empty = torch.empty(0, dtype=dtype, device=layout.device)
        names: list[list[str]] = [[] for _ in range(self._group.size())]
        dist.all_gather_object(names, list(held), group=self._group)
        self._owner = {name: rank for rank in reversed(range(len(names))) for name in names[rank]}

    def shard(self, place: ParameterMapping, ranks: int) -> Tensor:
        """This tensor-parallel rank's part of a parameter, on every stage."""
        owner = self._owner[place.name]
        if owner == self._group.rank():
            shard = self._held[place.name]().contiguous()
        else:
            shard = self._empty.new_empty(place.shard(ranks))
        if self._group.size() > 1:
            dist.broadcast(shard, group=self._group, group_src=owner)
        return shard


def gather(shard: Tensor, layout: Layout) -> list[Tensor]:
    """The shards of all tensor-parallel ranks, on each."""
    if layout.tensor == 1:
        return [shard]
    shards = [torch.empty_like(shard) for _ in range(layout.tensor)]
    dist.all_gather(shards, shard.contiguous(), group=layout.tensor_group)
    return shards
