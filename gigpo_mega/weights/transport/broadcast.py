"""Weights over the network: one broadcast of each bucket, by gloo from a CPU and by NCCL from a GPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import distributed_c10d

from gigpo_mega.launch import address_towards
from gigpo_mega.weights.transport import ceiling
from gigpo_mega.weights.transport.base import NamedTensor, PushError
from gigpo_mega.weights.transport.buckets import Bucket, stream, update_fields
from gigpo_mega.weights.transport.receivers import Receivers

LIMIT = timedelta(minutes=2)  # for the servers to join, and for one bucket


def prepare_nccl() -> None:
    """To be called before NCCL starts in a process that will broadcast.

    SGLang's ranks run without its cuMem allocations, and NCCL connects two ranks of a host only if both have
    them or neither.
    """
    os.environ.setdefault("NCCL_CUMEM_ENABLE", "0")


class BroadcastTransport:
    """Sends flattened buckets of `bucket_bytes` to servers on any host.

    Learner and servers are a process group for the time of one push. A server that was started again in
    between is a member like any other, and an idle group takes no memory from an update.
    """

    def __init__(self, receivers: Receivers, bucket_bytes: int) -> None:
        self._receivers, self._bucket_bytes = receivers, bucket_bytes

    def send(self, weights: Iterable[NamedTensor], version: int) -> None:
        """As `WeightTransport.send`.

        A bucket is broadcast by the backend's own threads or stream: meanwhile the caller gathers the next.
        """
        with self._receivers.session(), self._joined() as group:
            stream(weights, self._bucket_bytes, partial(self._start, group, version))

    def ceiling(self) -> float:
        """GiB/s of a connection over the loopback interface; of a copy in memory for NCCL."""
        return ceiling.copying() if torch.cuda.is_available() else ceiling.sending()

    def damage(self) -> str | None:
        """Nothing that was sent is kept."""
        return None

    def _start(self, group: _Group, version: int, bucket: Bucket, last: bool) -> Callable[[], Any]:
        from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorBucket

        fields = update_fields(version, last) | {
            "group_name": group.name,
            "names": [name for name, _ in bucket],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
        }
        flat = FlattenedTensorBucket(named_tensors=bucket).get_flattened_tensor()
        loaded = self._receivers.start("/update_weights_from_distributed", fields)
        group.begin(flat)

        def arrive() -> None:
            loaded.answers()  # first: of a broadcast that fails only the connection is known
            group.wait()

        return arrive

    @contextmanager
    def _joined(self) -> Iterator[_Group]:
        """A block in which this process and all ranks of all servers are a group."""
        ranks = self._receivers.ranks()
        group = _Group(1 + sum(ranks), "nccl" if torch.cuda.is_available() else "gloo")
        try:
            asked = invitations(self._receivers.urls, ranks, group.described)
            joining = self._receivers.start("/init_weights_update_group", asked)
            try:
                group.join()
            except PushError as error:
                raise joining.error() or error from None
            joining.answers()
            yield group
            leaving = self._receivers.start("/destroy_weights_update_group", {"group_name": group.name})
            group.close()  # NCCL wants all of a host to leave together
            leaving.answers()
        except BaseException:
            group.abort()
            raise
        finally:
            group.close()


class _Group:
    """The process group of one push, with this process as rank 0, and the broadcast under way in it.

    torch closes a group's connections, at which the other members wait, when nothing refers to the group or
    its work any more. So only this object does: a traceback keeps every local variable it has passed.
    """

    def __init__(self, size: int, backend: str) -> None:
        self.name = f"weights-{uuid4().hex}"
        self._size, self._backend = size, backend
        # By an address, torch would look for torchrun's store under torchrun.
        store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
        self.described = {"group_name": self.name, "backend": backend, "master_port": store.port}
        self._store: Store | None = store
        self._group: dist.ProcessGroup | None = None
        self._work: dist.Work | None = None

    def join(self) -> None:
        """Return when all have joined; raises PushError after LIMIT."""
        self._attempt(self._join)

    def begin(self, flat: Tensor) -> None:
        """Begin to broadcast a bucket."""
        self._attempt(lambda: self._begin(flat))

    def wait(self) -> None:
        """Wait until the bucket has gone."""
        self._attempt(self._wait)

    def abort(self) -> None:
        """Leave the group with a broadcast under way that may never end: NCCL would wait for it."""
        if self._group is not None and self._backend == "nccl":
            distributed_c10d._abort_process_group(self._group)
            self._group = None

    def close(self) -> None:
        """Leave the group, and close its connections."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
        self._store = self._group = self._work = None

    def _join(self) -> None:
        from sglang.srt.utils import init_custom_process_group

        assert self._store is not None
        self._group = init_custom_process_group(
            backend=self._backend,
            store=PrefixStore(self.name, self._store),
            world_size=self._size,
            rank=0,
            group_name=self.name,
            timeout=LIMIT,
        )

    def _begin(self, flat: Tensor) -> None:
        self._work = dist.broadcast(flat, 0, group=self._group, async_op=True)

    def _wait(self) -> None:
        assert self._work is not None
        self._work.wait()

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except RuntimeError as error:  # also torch's DistError
            error.__traceback__ = None  # torch's own variables refer to the group
            reason = " ".join(str(error).split())[:300]
            raise PushError(f"weights.transport broadcast: a server did not join or left: {reason}") from None


def invitations(urls: Sequence[str], ranks: Sequence[int], common: dict[str, Any]) -> list[dict[str, Any]]:
    """What each server is asked to join: its first rank comes after those of the servers before it."""
    offsets = itertools.accumulate(ranks, initial=1)
    return [
        common | {"master_address": _our_address(url), "rank_offset": offset, "world_size": 1 + sum(ranks)}
        for url, offset in zip(urls, offsets, strict=False)
    ]


def _our_address(url: str) -> str:
    """The address of this machine at which the server at `url` reaches it."""
    parts = urlsplit(url)
    return address_towards(parts.hostname or "", parts.port or 80)
