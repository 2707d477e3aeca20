"""The learner's state as megatron's sharded checkpoint: written from a copy, in a thread, and read back."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path
from typing import Any, cast

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from gigpo_mega.learner import optimizer_state, torch_adam
from gigpo_mega.learner.learner import Learner
from gigpo_mega.storage import manifest

logging.getLogger(filesystem_async.__name__).setLevel(logging.CRITICAL)  # what it logs, it raises too

_Bucket = tuple[Path, str, tuple[list[Any], list[tuple[Any, Tensor]]]]


class Writing:
    """This rank's files of a checkpoint on their way to `folder`; all ranks make one together.

    megatron writes in forked processes; a thread does as well, leaves the program's locks and devices alone
    and can tell its errors.
    """

    def __init__(self, learner: Learner, folder: Path, background: bool) -> None:
        filesystem_async._results_queue = self._results = queue.Queue()
        _fill_moments(learner)  # a run may be saved before its first update
        state = _sharded(learner)
        # Ranks with the same weights write a part each.
        strategy = FullyParallelSaveStrategyWrapper(
            get_default_save_sharded_strategy(), learner.layout.replica_group
        )
        self._request = cast(
            AsyncRequest,
            dist_checkpointing.save(state, str(folder), strategy, async_sharded_save=True),
        )
        self._folder = folder
        self._buckets = self._staged(background)
        self._error: Exception | None = None
        self.files: manifest.Files = {}  # what this rank wrote; complete after `wait`
        self._thread = threading.Thread(target=self._run, name="checkpoint")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `wait` would return at once."""
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
        """The tensors in host memory, and with `copy` where an update cannot change them any more."""
        if self._request.preload_fn is None:
            return []
        before: list[_Bucket] = self._request.async_fn_args[1]
        # megatron would copy to pinned memory, of which torch rounds every piece up and gives nothing back.
        buckets = cast(list[_Bucket], filesystem_async.FileSystemWriterAsync.preload_tensors(before, False))
        if not copy:
            return buckets
        # What was in host memory before is still the learner's; of what was on a GPU this is a copy.
        held = {id(tensor) for _, _, (_, tensors) in before for _, tensor in tensors}
        return [
            (path, name, (blobs, [(item, t.clone() if id(t) in held else t) for item, t in tensors]))
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
    _fill_moments(learner)
    loaded = cast(dict[str, Any], dist_checkpointing.load(_sharded(learner, loading=True), str(folder)))
    for i, chunk in enumerate(learner.policy):
        chunk.load_state_dict(loaded[f"model{i}"])
    learner.optimizer.load_state_dict(loaded["optimizer"])
    learner.apply_optimizer_settings()  # the checkpoint brought its own
    if torch_adam.USED:
        assert optimizer_steps is not None
        torch_adam.restore_step_count(learner.optimizer, optimizer_steps)


def _fill_moments(learner: Learner) -> None:
    """Give Adam the state of its first step, which has zeros for moments, where it has none yet."""
    distributed = _distributed(learner)
    if torch_adam.USED:
        torch_adam.prefill(learner.optimizer)
    elif distributed is not None and not distributed.optimizer.state:
        distributed.load_state_dict(distributed.state_dict())  # which allocates it
        for state in distributed.optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].zero_()


def _distributed(learner: Learner) -> DistributedOptimizer | None:
    """The learner's optimizer if it is sharded over data-parallel ranks."""
    part = torch_adam.parts(learner.optimizer)[0]
    return part if isinstance(part, DistributedOptimizer) else None


def _sharded(learner: Learner, loading: bool = False) -> dict[str, Any]:
    """What megatron saves; inside each entry go names that no layout changes."""
    metadata = {"dp_cp_group": learner.layout.replica_group}
    model = {
        f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(learner.policy)
    }
    distributed = _distributed(learner)
    if distributed is None:
        return model | {"optimizer": learner.optimizer.sharded_state_dict(model, is_loading=loading)}
    share = optimizer_state.sharded(distributed, model)
    return model | {"optimizer": distributed.state_dict(), "optimizer_state": share}
