"""A push: the learner's weights to all engines, and the proof that they arrived."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from gigpo_mega.config import WeightsConfig
from gigpo_mega.cpu import stubs
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.transport.base import NamedTensor, PushError, WeightTransport
from gigpo_mega.weights.transport.broadcast import BroadcastTransport
from gigpo_mega.weights.transport.checksums import Checksums
from gigpo_mega.weights.transport.disk import DiskTransport
from gigpo_mega.weights.transport.receivers import Receivers
from gigpo_mega.weights.transport.tensor import TensorTransport

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push took: from the first gathered tensor to the last proof."""

    nbytes: int  # of the policy; every engine got as many
    seconds: float
    ceiling: float  # GiB/s at which bytes could travel this way at best

    @property
    def metrics(self) -> dict[str, float]:
        """For the metrics of the iteration."""
        gib = self.nbytes / _GIB
        return {
            "weights/push_seconds": self.seconds,
            "weights/push_gib": gib,
            "weights/push_gib_per_s": gib / self.seconds,
            "weights/push_ceiling_gib_per_s": self.ceiling,
        }


class WeightPush:
    """Pushes a policy of `shape` to the SGLang servers at `urls` as `config` says.

    `folder` is for `weights.transport disk`. If the servers may be `busy` they are paused for the push: a
    response under way goes on with the new weights and with keys and values that these compute again. Making
    one measures the transport's ceiling.
    """

    def __init__(
        self,
        config: WeightsConfig,
        shape: ModelShape,
        urls: Sequence[str],
        folder: Path,
        timeout: float = 600.0,
        busy: bool = False,
    ) -> None:
        stubs.install()  # transports import sglang when they need it
        self._receivers = Receivers(urls, timeout)
        self._transport = _transport(config, self._receivers, folder)
        self._shape, self._hashed, self._busy = shape, config.checksums, busy
        self._ceiling = self._transport.ceiling()

    def push(self, weights: Iterable[NamedTensor], version: int) -> Pushed:
        """Send `weights`, (Hugging Face name, tensor) pairs in any order, as `version`.

        Returns when every server reports `version` and, with `weights.checksums`, holds what was sent. Raises
        PushError otherwise; the servers' weights are then undefined until a push succeeds. They must be idle
        or paused: a push flushes their prefix caches, whose entries the old weights made.
        """
        start = time.perf_counter()
        sums = Checksums(self._shape, self._receivers.ranks() if self._hashed else ())
        try:
            with self._receivers.paused() if self._busy else nullcontext():
                self._transport.send(sums.passing(weights), version)
                self.verify(version)
                sums.compare(self._receivers)
        except PushError as error:
            if found := self._transport.damage():
                raise PushError(f"{error}; {found}") from None
            raise
        return Pushed(sums.nbytes, time.perf_counter() - start, self._ceiling)

    def move(self, urls: Sequence[str]) -> None:
        """The servers are at `urls` now."""
        self._receivers.urls[:] = urls

    def verify(self, version: int) -> None:
        """Raise PushError unless every server samples with `version` now."""
        self._receivers.verify(version)


def _transport(config: WeightsConfig, receivers: Receivers, folder: Path) -> WeightTransport:
    bucket_bytes = config.bucket_mib << 20
    if config.transport == "tensor":
        return TensorTransport(receivers, bucket_bytes)
    if config.transport == "broadcast":
        return BroadcastTransport(receivers, bucket_bytes)
    return DiskTransport(receivers, folder)
