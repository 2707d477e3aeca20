"""The learner's state as megatron's sharded checkpoint: written from a copy, in a thread, and read back."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gigpo_mega.learner import manifest, torch_adam
from gigpo_mega.learner.update import Learner

from megatron.core import dist_checkpointing  # isort: skip  (learner.update has installed the CPU patches)
from megatron.core.dist_checkpointing.strategies import filesystem_async  # isort: skip
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest  # isort: skip
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # isort: skip

logging.getLogger(filesystem_async.__name__).setLevel(logging.CRITICAL)  # what it logs, it raises too

# Optimizer shards that a run with another layout can read.
_SHARDING: dict[str, Any] = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}
_Bucket = tuple[Path, str, tuple[list[Any], list[tuple[Any, Tensor]]]]


class Writing:
    """This rank's files of a checkpoint on their way to `folder`; all ranks make one together.

    megatron writes in forked processes; a thread does as well, leaves the program's locks and devices alone
    and can tell its errors.
    """

    def __init__(self, learner: Learner, folder: Path, background: bool) -> None:
        filesystem_async._results_queue = self._results = queue.Queue()
        if torch_adam.USED:
            torch_adam.prefill(learner.optimizer)  # a run may be saved before its first update
        state = _sharded(learner, loading=False)
        self._request = cast(
            AsyncRequest,
            dist_checkpointing.save(state, str(folder), content_metadata=_SHARDING, async_sharded_save=True),
        )
        self._folder = folder
        self._buckets = self._staged(background)
        self._error: Exception | None = None
        self.files: manifest.Files = {}  # what this rank wrote; complete after `wait`
        self._thread = threading.Thread(target=self._run, name="checkpoint")
        self._thread.start()

    @property
    def done(self) -> bool:
        """True where `wait` would return at once."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return when this rank's files are on the disk; raises what the disk said."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def finalize(self) -> None:
        """Write megatron's metadata, on all ranks together after `wait`."""
        for finish in self._request.finalize_fns:
            finish()

    def _staged(self, copy: bool) -> list[_Bucket]:
        """The tensors in host memory, where an update cannot change them any more."""
        if self._request.preload_fn is None:
            return []
        buckets: list[_Bucket] = self._request.preload_fn()
        if not copy:
            return buckets
        return [
            (path, name, (blobs, [(item, tensor.clone()) for item, tensor in tensors]))
            for path, name, (blobs, tensors) in buckets
        ]

    def _run(self) -> None:
        try:
            written = dict(self._write(i, bucket) for i, bucket in enumerate(self._buckets))
            if self._buckets:
                self._results.put(written)
            self.files = manifest.describe(self._folder, [Path(path) for path, *_ in self._buckets])
        except Exception as error:
            self._error = error
        self._buckets = []  # the copy is not needed any more

    def _write(self, index: int, bucket: _Bucket) -> tuple[int, Any]:
        results: queue.Queue[tuple[int, Any]] = queue.Queue()
        running: queue.Queue[int] = queue.Queue()
        running.put(index)
        transforms = self._request.async_fn.args[0]  # type: ignore[union-attr]
        filesystem_async.FileSystemWriterAsync.write_preloaded_data(
            transforms, index, bucket, cast(Any, results), cast(Any, running), use_fsync=True
        )
        _, result = results.get()
        if isinstance(result, Exception):
            raise result
        return index, result


def size(learner: Learner) -> int:
    """Bytes of a checkpoint, over all shards: weights, and of trained ones an fp32 copy and two moments."""
    shard = sum(p.numel() * (p.element_size() + 12 * p.requires_grad) for p in learner.policy.parameters())
    return shard * learner.layout.tensor * learner.layout.pipeline


def read(learner: Learner, folder: Path, optimizer_steps: float | None) -> None:
    """Restore weights and optimizer, from files of this layout or any other."""
    if torch_adam.USED:
        torch_adam.prefill(learner.optimizer)
    sharded = _sharded(learner, loading=True)
    loaded = cast(dict[str, Any], dist_checkpointing.load(sharded, str(folder)))
    for i, chunk in enumerate(learner.policy):
        chunk.load_state_dict(loaded[f"model{i}"])
    learner.optimizer.load_state_dict(loaded["optimizer"])
    if torch_adam.USED:
        assert optimizer_steps is not None
        torch_adam.restore_step_count(learner.optimizer, optimizer_steps)


def _pad_buckets() -> None:
    """Let the optimizer's state be found where it is looked for.

    megatron-core 0.16.1 gathers the buckets of a gradient buffer without the padding at their ends, then
    takes each parameter from where it stands with padding: what follows the first bucket is saved shifted,
    with no more than a warning. There are several buckets where gradients overlap with the backward pass,
    and on the pipeline stages that share the embedding.
    """
    patched: Any = DistributedOptimizer
    original = patched.get_parameter_state_dp_zero

    def with_padding(self: Any, *args: Any, **options: Any) -> Any:
        state = original(self, *args, **options)
        if state is None:  # only one rank asked for it, another one
            return None
        for i, buffer in enumerate(self.buffers):
            sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
            padding = [bucket.grad_data.numel() - bucket.numel_unpadded for bucket in buffer.buckets]
            for tensors in state[i].values():
                for key in ("param", "exp_avg", "exp_avg_sq"):
                    parts = zip(tensors[key].split(sizes), padding, strict=True)
                    tensors[key] = torch.cat([F.pad(part, (0, missing)) for part, missing in parts])
        return state

    patched.get_parameter_state_dp_zero = with_padding


_pad_buckets()


def _sharded(learner: Learner, loading: bool) -> dict[str, Any]:
    """What megatron saves; inside each entry go names that no layout changes."""
    metadata = _SHARDING | {"dp_cp_group": learner.layout.replica_group}
    model = {
        f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(learner.policy)
    }
    distributed = isinstance(torch_adam.parts(learner.optimizer)[0], DistributedOptimizer)
    options = {"metadata": metadata} if distributed else {}
    optimizer = learner.optimizer.sharded_state_dict(model, is_loading=loading, **options)
    return model | {"optimizer": optimizer}
