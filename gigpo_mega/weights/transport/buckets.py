"""Buckets of tensors: one is gathered while the one before it travels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gigpo_mega.weights.transport.base import NamedTensor, PushError

Bucket = list[NamedTensor]


def stream(
    weights: Iterable[NamedTensor], limit: int, start: Callable[[Bucket, bool], Callable[[], Any]]
) -> None:
    """Cut `weights` into buckets of `limit` bytes and `start` each, told whether it is the last.

    What `start` returns waits until the bucket has arrived. It is called when the next bucket is complete, so
    two buckets are held at most. Raises PushError if there are no weights.
    """
    arrive = None
    for bucket, last in buckets(weights, limit):
        if arrive is not None:
            arrive()
        arrive = start(bucket, last)
    if arrive is None:
        raise PushError("there is nothing to push: the learner exported no weights")
    arrive()


def buckets(weights: Iterable[NamedTensor], limit: int) -> Iterator[tuple[Bucket, bool]]:
    """Lists of at most `limit` bytes, or of one larger tensor, each with whether it is the last."""
    bucket: Bucket = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > limit:
            yield bucket, False
            bucket, size = [], 0
        bucket.append((name, tensor.detach()))
        size += tensor.nbytes
    if bucket:
        yield bucket, True


def update_fields(version: int, last: bool) -> dict[str, Any]:
    """What an update by bucket says: the version changes, and the prefix cache goes, with the last one."""
    fields: dict[str, Any] = {"load_format": "flattened_bucket", "flush_cache": last}
    return fields | {"weight_version": str(version)} if last else fields
