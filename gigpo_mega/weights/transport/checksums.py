"""The checksums that SGLang must report for the tensors that were sent.

SGLang 0.5.23 keeps the projections of attention and of the MLP as one tensor each, pads the vocabulary, and
hashes what each tensor-parallel rank holds: SHA-256 on a CPU, a kernel of its own on a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.families.mapping import entries
from gigpo_mega.weights.families.sharding import QKV
from gigpo_mega.weights.transport.base import NamedTensor, PushError
from gigpo_mega.weights.transport.receivers import Receivers

_FUSED = {3: ("q_proj", "qkv_proj"), 2: ("gate_proj", "gate_up_proj")}  # by the number of parts
_VOCABULARY_MULTIPLE = 64  # rows


class Checksums:
    """Counts and hashes the tensors of a policy of `shape` on their way to engines of `sizes` ranks."""

    def __init__(self, shape: ModelShape, sizes: Iterable[int]) -> None:
        self.nbytes = 0
        self._sizes = sorted(set(sizes))
        self._places = {name: place for place in _places(shape) for name in place.parts}
        self._parts: dict[str, dict[str, Tensor]] = {}  # of the engine's tensors that are not complete
        self._sums: dict[tuple[int, int], dict[str, str]] = {}  # by size and rank, then the engine's name
        self._device = "cpu"

    def passing(self, weights: Iterable[NamedTensor]) -> Iterator[NamedTensor]:
        """`weights`, each hashed before it is given away."""
        for name, tensor in weights:
            self.nbytes += tensor.nbytes
            self._device = tensor.device.type
            if self._sizes:
                self._add(name, tensor.detach())
            yield name, tensor

    def compare(self, receivers: Receivers) -> None:
        """Raise PushError for a tensor of which a rank of an engine holds something else than was sent.

        An engine that hashes on another kind of device, or is cut otherwise than by tensor parallelism,
        reports checksums that say nothing about ours.
        """
        if not self._sizes:
            return
        answers = receivers.post("/weights_checker", {"action": "checksum"})
        for url, about, answer in zip(receivers.urls, receivers.get("/server_info"), answers, strict=True):
            if about.get("device") != self._device:
                continue
            for found in answer["ranks"]:
                place = found["parallelism_info"][0]  # the policy's; others are of models that draft for it
                if place["pp_size"] == place["dp_size"] == 1:
                    self._compare(url, place["tp_rank"], place["tp_size"], found["checksums"])

    def _compare(self, url: str, rank: int, size: int, held: Mapping[str, str]) -> None:
        sums = self._sums[size, rank]
        wrong = [name for name, expected in sums.items() if held.get(name) != expected]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            holder = f"rank {rank} of the engine" if size > 1 else "the engine"
            raise PushError(
                f"{holder} at {url} holds other values of {wrong[0]}{more} than the learner sent: push "
                "again or restart the engine; if it changes weights as it loads them, e.g. to fp8, set "
                "weights.checksums to false"
            )

    def _add(self, name: str, tensor: Tensor) -> None:
        place = self._places[name]
        parts = self._parts.setdefault(place.name, {})
        parts[name] = tensor
        if len(parts) < len(place.parts):
            return
        del self._parts[place.name]
        whole = [parts[part] for part in place.parts]
        for size in self._sizes:
            for rank in range(size):
                self._sums.setdefault((size, rank), {})[place.name] = _hash(place.shard(whole, size, rank))


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor of the engine: the Hugging Face tensors that it is made of, and how its ranks share them."""

    name: str
    parts: tuple[str, ...]
    axis: int | None  # None: every rank holds the whole
    vocabulary: bool
    kv_heads: int | None  # of q, k and v

    def shard(self, whole: list[Tensor], size: int, rank: int) -> list[Tensor]:
        """What one of `size` ranks holds of each part."""
        if self.axis is None:
            return whole
        if self.vocabulary:
            return _vocabulary(whole[0], size, rank)
        shares = [size] * len(whole)
        if self.kv_heads is not None:  # several ranks may have the same key and value head
            shares[1:] = [min(size, self.kv_heads)] * 2
        return [
            part.chunk(share, self.axis)[rank * share // size]
            for part, share in zip(whole, shares, strict=True)
        ]


def _places(shape: ModelShape) -> Iterator[_Place]:
    for entry in entries(shape):
        (first, *others), layout = entry.hf, entry.layout
        name = first.replace(*_FUSED[1 + len(others)]) if others else first
        kv_heads = shape.kv_heads if layout is QKV else None
        yield _Place(name, (first, *others), layout.axis, layout.padded, kv_heads)


def _vocabulary(rows: Tensor, size: int, rank: int) -> list[Tensor]:
    """A rank's rows, and zeros that fill all up to a multiple of 64, or of 64 for each rank if need be."""
    multiple = _VOCABULARY_MULTIPLE
    if -(-len(rows) // multiple) * multiple % size:
        multiple *= size
    count = -(-len(rows) // multiple) * multiple // size
    ours = rows[rank * count : (rank + 1) * count]
    return [ours, rows.new_zeros(count - len(ours), *rows.shape[1:])]


def _hash(rows: list[Tensor]) -> str:
    """As SGLang's `WeightChecker` writes the hash of a tensor of these rows."""
    if rows[0].is_cuda:
        from sglang.kernels.ops.memory.gpu_tensor_hash import gpu_tensor_hash

        return f"{gpu_tensor_hash(torch.cat([part.flatten() for part in rows])):016x}"
    digest = hashlib.sha256()
    for part in rows:
        digest.update(part.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
