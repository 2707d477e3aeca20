"""Sends the learner's weights to a running SGLang server, and makes sure they arrived."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.multiprocessing

from gigpo_mega.cpu import stubs
from gigpo_mega.errors import UserError
from gigpo_mega.types import Float32

NamedTensor = tuple[str, torch.Tensor]


class PushError(UserError):
    """The server did not take the weights, or samples with others than it was sent."""


@dataclass(frozen=True, slots=True)
class LogprobGap:
    """How far the engine's log-probs are from the learner's for the same tokens."""

    mean: float
    max: float
    tokens: int


class WeightPusher:
    """Pushes named tensors to the server at `url` in flattened buckets of about `bucket_mib` MiB.

    CPU tensors travel through shared memory, CUDA tensors as IPC handles; the HTTP requests carry only where
    they are, for each of the server's tensor-parallel ranks, which load their shards. The server must be
    idle: a push flushes its prefix cache, whose entries the old weights made.
    """

    def __init__(self, url: str, bucket_mib: int = 256, timeout: float = 600.0) -> None:
        self._url = url.rstrip("/")
        self._bucket_bytes = bucket_mib << 20
        self._timeout = timeout
        stubs.install()

    def push(self, weights: Iterable[NamedTensor], version: int) -> None:
        """Send `weights`, (Hugging Face name, tensor) pairs in any order, as `version`.

        Returns when the server reports `version`; raises PushError otherwise. After an error the server's
        weights are undefined until a push succeeds.
        """
        ranks = int(self._request("/server_info", None).get("tp_size", 1))
        self._post("/begin_weight_update", {})
        try:
            self._send(weights, version, ranks)
        except BaseException:
            with contextlib.suppress(PushError):  # the first error is the one to tell
                self._post("/end_weight_update", {})
            raise
        self._post("/end_weight_update", {})
        self.verify(version)

    def verify(self, version: int) -> None:
        """Raise PushError unless the server samples with `version` now."""
        reported = self._request("/model_info", None).get("weight_version")
        if reported != str(version):
            raise PushError(
                f"the engine at {self._url} has weight version {reported}, the learner {version}: "
                "a push was lost; push again or restart the engine"
            )

    def _send(self, weights: Iterable[NamedTensor], version: int, ranks: int) -> None:
        previous: list[NamedTensor] | None = None
        for bucket in buckets(weights, self._bucket_bytes):
            if previous is not None:
                self._update(previous, None, ranks)
            previous = bucket
        if previous is None:
            raise PushError("there is nothing to push: the learner exported no weights")
        # The version changes, and the cache goes, with the last bucket.
        self._update(previous, version, ranks)

    def _update(self, bucket: list[NamedTensor], version: int | None, ranks: int) -> None:
        payload: dict[str, Any] = {
            "serialized_named_tensors": _serialized(bucket, ranks),
            "load_format": "flattened_bucket",
            "flush_cache": version is not None,
        }
        if version is not None:
            payload["weight_version"] = str(version)
        self._post("/update_weights_from_tensor", payload)

    def _post(self, path: str, payload: dict[str, Any]) -> None:
        answer = self._request(path, payload)
        if not answer.get("success"):
            raise PushError(f"{self._url}{path}: {answer.get('message')}")

    def _request(self, path: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        body = None if payload is None else json.dumps(payload).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            reason = error.read()[:300].decode("utf-8", "replace")
            raise PushError(f"{self._url}{path} answered {error.code}: {reason}") from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise PushError(f"{self._url}{path}: {error}") from None


def buckets(weights: Iterable[NamedTensor], limit: int) -> Iterator[list[NamedTensor]]:
    """Cut `weights` into lists of at most `limit` bytes, or of one tensor where that alone is larger."""
    bucket: list[NamedTensor] = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor.detach()))
        size += tensor.nbytes
    if bucket:
        yield bucket


def logprob_gap(engine: Iterable[Float32], learner: Iterable[Float32]) -> LogprobGap:
    """Compare the engine's log-probs [R], row by row, with the learner's for the same tokens.

    The learner's must be of the same weight version and temperature. Raises ValueError for rows of other
    lengths.
    """
    rows = list(zip(engine, learner, strict=True))
    if any(len(ours) != len(theirs) for ours, theirs in rows):
        raise ValueError("the engine's and the learner's log-probs are not of the same tokens")
    if not rows:
        return LogprobGap(0.0, 0.0, 0)
    gap = np.abs(np.concatenate([np.float64(ours) - np.float64(theirs) for ours, theirs in rows]))
    return LogprobGap(float(gap.mean()), float(gap.max()), len(gap))


def _serialized(bucket: list[NamedTensor], ranks: int) -> list[str]:
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
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    with open(os.devnull, "wb") as nothing:
        for stream in kept:
            os.dup2(nothing.fileno(), stream)
    try:
        torch.zeros(1).share_memory_()  # starts the manager
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
