"""Weights through the memory of this machine: shared between CPU processes, as CUDA IPC handles on a GPU."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.multiprocessing

from gigpo_mega.weights.transport import ceiling
from gigpo_mega.weights.transport.base import NamedTensor
from gigpo_mega.weights.transport.buckets import Bucket, stream, update_fields
from gigpo_mega.weights.transport.receivers import Receivers


class TensorTransport:
    """Sends flattened buckets of `bucket_bytes` to servers on this machine.

    The HTTP requests carry only where the tensors are, for each of a server's tensor-parallel ranks, which
    load their shards.
    """

    def __init__(self, receivers: Receivers, bucket_bytes: int) -> None:
        self._receivers, self._bucket_bytes = receivers, bucket_bytes

    def send(self, weights: Iterable[NamedTensor], version: int) -> None:
        """As `WeightTransport.send`."""
        ranks = self._receivers.ranks()
        with self._receivers.session():
            stream(weights, self._bucket_bytes, partial(self._start, ranks, version))

    def ceiling(self) -> float:
        """GiB/s of a copy in memory."""
        return ceiling.copying()

    def damage(self) -> str | None:
        """Nothing that was sent is kept."""
        return None

    def _start(self, ranks: Sequence[int], version: int, bucket: Bucket, last: bool) -> Callable[[], Any]:
        fields, places = update_fields(version, last), iter(_serialized(bucket, sum(ranks)))
        payloads = [
            fields | {"serialized_named_tensors": list(itertools.islice(places, count))} for count in ranks
        ]
        return self._receivers.start("/update_weights_from_tensor", payloads).answers


def _serialized(bucket: Bucket, ranks: int) -> list[str]:
    """Where each of `ranks` finds the bucket: every receiver counts as a user of the memory by itself."""
    from sglang.srt.utils import MultiprocessingSerializer
    from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorBucket

    if not bucket[0][1].is_cuda:
        _share_through_files()
    flat = FlattenedTensorBucket(named_tensors=bucket)
    payload = {"flattened_tensor": flat.get_flattened_tensor(), "metadata": flat.get_metadata()}
    return [str(MultiprocessingSerializer.serialize(payload, output_str=True)) for _ in range(ranks)]


@functools.cache
def _share_through_files() -> None:
    """Let any process open our shared tensors; the default hands over descriptors, for children only.

    torch starts a manager process for this that lives as long as the server does. It must not inherit our
    output: whoever reads that through a pipe would wait for the server to end.
    """
    torch.multiprocessing.set_sharing_strategy("file_system")
    kept = {output: os.dup(output) for output in (1, 2)}
    with open(os.devnull, "wb") as nothing:
        for output in kept:
            os.dup2(nothing.fileno(), output)
    try:
        torch.zeros(1).share_memory_()  # starts the manager
    finally:
        for output, copy in kept.items():
            os.dup2(copy, output)
            os.close(copy)
