"""Full-state checkpoints: weights, optimizer, scheduler, RNG and iteration, published by one rename."""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from gigpo_mega.config import CheckpointConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import random_state, torch_adam
from gigpo_mega.learner.model import PolicyModel
from gigpo_mega.learner.update import Learner

from megatron.core import dist_checkpointing  # isort: skip  (learner.update has installed the CPU patches)
from megatron.core.dist_checkpointing.strategies import filesystem_async  # isort: skip
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # isort: skip

# We save in the foreground: megatron's own queue starts a process that imports the whole program once more.
filesystem_async._results_queue = queue.Queue()
logging.getLogger(filesystem_async.__name__).setLevel(logging.CRITICAL)  # what it logs, it raises too

# Optimizer shards that a run with another layout can read.
_SHARDING: dict[str, Any] = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}
_STATE = "state.json"
_FAILURES = (Exception, CheckpointException)  # torch's derives from BaseException


class Checkpoints:
    """The checkpoints of a run, `iteration_000010` and so on under one folder; every rank holds one."""

    def __init__(self, folder: Path, cfg: CheckpointConfig) -> None:
        self._folder, self._cfg = folder, cfg

    def newest(self) -> int | None:
        """The iteration of the newest checkpoint, or None."""
        return max(self._all(), default=None)

    def oldest(self) -> int | None:
        """The iteration of the oldest checkpoint, or None."""
        return min(self._all(), default=None)

    def resumable(self) -> int:
        """The iteration to resume from, that of the newest intact checkpoint; 0 where there is none at all.

        Newer ones that are damaged are named on stderr. Raises UserError where every one is damaged.
        """
        iterations = sorted(self._all(), reverse=True)
        for iteration in iterations:
            if _intact(self._path(iteration)):
                return iteration
            sys.stderr.write(f"{self._path(iteration)} is damaged; trying the one before it\n")
        if iterations:
            raise UserError(f"output: every checkpoint in {self._folder} is damaged; choose another output")
        return 0

    def save(self, learner: Learner) -> None:
        """Write everything, then rename; older checkpoints beyond `keep` go afterwards.

        Raises UserError where it cannot be written; the last good checkpoint stays as it was.
        """
        final = self._path(learner.iteration)
        partial = final.with_name(final.name + ".partial")
        try:
            _together(learner, partial, lambda: _fresh(partial, _size(learner)), leader=True)
            _together(learner, partial, lambda: _write(learner, partial))
            _together(learner, final, lambda: self._publish(learner, partial, final), leader=True)
        except UserError:
            if learner.layout.leader:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def load(self, learner: Learner, iteration: int) -> None:
        """Restore what `save` wrote; raises UserError for a damaged checkpoint or one of another model."""
        path = self._path(iteration)
        try:
            state = json.loads((path / _STATE).read_text())
            _check_shape(path, state["shape"], asdict(learner.shape))
            _read(learner, path, state)
        except UserError:
            raise
        except _FAILURES as error:
            raise UserError(
                f"output: cannot read {path}: {_reason(error)}; delete it to resume from an older one"
            ) from error
        learner.iteration = iteration

    def _all(self) -> list[int]:
        return [int(path.name.split("_")[1]) for path in self._folder.glob("iteration_*[0-9]")]

    def _path(self, iteration: int) -> Path:
        return self._folder / f"iteration_{iteration:06d}"

    def _publish(self, learner: Learner, partial: Path, final: Path) -> None:
        (partial / _STATE).write_text(json.dumps(_state(learner, partial), indent=1))
        _sync(partial)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        past = sorted(i for i in self._all() if i <= learner.iteration)
        for iteration in past[: -self._cfg.keep]:
            shutil.rmtree(self._path(iteration))


def _fresh(partial: Path, size: int) -> None:
    """An empty folder on a disk with room for `size` bytes."""
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "learner").mkdir(parents=True)
    if shutil.disk_usage(partial).free < size:
        raise OSError(f"a checkpoint needs {size / 2**20:.1f} MiB")


def _size(learner: Learner) -> int:
    """Bytes of a checkpoint: a weight, an fp32 copy and two moments per parameter, over all shards."""
    shard = sum(p.numel() * (p.element_size() + 12) for p in learner.policy.parameters())
    return shard * learner.layout.tensor * learner.layout.pipeline


def _write(learner: Learner, partial: Path) -> None:
    state = _sharded(learner, loading=False)
    dist_checkpointing.save(state, str(partial / "learner"), content_metadata=_SHARDING)
    if learner.layout.leader:
        random_state.save(partial / "random.pt")


def _state(learner: Learner, partial: Path) -> dict[str, Any]:
    """What state.json says: the model, small state, and the size of every other file."""
    files = (path for path in partial.rglob("*") if path.is_file() and path.name != _STATE)
    return {
        "iteration": learner.iteration,
        "shape": asdict(learner.shape),
        "scheduler": learner.scheduler.state_dict(),
        "optimizer_steps": torch_adam.step_count(learner.optimizer) if torch_adam.USED else None,
        "files": {str(path.relative_to(partial)): path.stat().st_size for path in files},
    }


def _intact(path: Path) -> bool:
    """True where every file of a checkpoint is there in its full size."""
    try:
        files: dict[str, int] = json.loads((path / _STATE).read_text())["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _check_shape(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [f"{k} {found.get(k)} (here {v})" for k, v in wanted.items() if found.get(k) != v]
    if different:
        raise UserError(
            f"output: {path} is a checkpoint of another model: {', '.join(different)}; "
            "choose another output or the model it was made with"
        )


def _read(learner: Learner, path: Path, state: dict[str, Any]) -> None:
    if torch_adam.USED:
        torch_adam.prefill(learner.optimizer)
    sharded = _sharded(learner, loading=True)
    loaded = cast(dict[str, Any], dist_checkpointing.load(sharded, str(path / "learner")))
    for name, chunk in _chunks(learner):
        chunk.load_state_dict(loaded[name])
    learner.optimizer.load_state_dict(loaded["optimizer"])
    if torch_adam.USED:
        torch_adam.restore_step_count(learner.optimizer, state["optimizer_steps"])
    learner.scheduler.load_state_dict(state["scheduler"])
    random_state.load(path / "random.pt")


def _sharded(learner: Learner, loading: bool) -> dict[str, Any]:
    metadata = _SHARDING | {"dp_cp_group": learner.layout.replica_group}
    model = {name: chunk.sharded_state_dict(metadata=metadata) for name, chunk in _chunks(learner)}
    distributed = isinstance(torch_adam.parts(learner.optimizer)[0], DistributedOptimizer)
    options = {"metadata": metadata} if distributed else {}
    optimizer = learner.optimizer.sharded_state_dict(model, is_loading=loading, **options)
    return model | {"optimizer": optimizer}


def _chunks(learner: Learner) -> list[tuple[str, PolicyModel]]:
    """This rank's parts of the policy; what is inside goes by names that no layout changes."""
    return [(f"model{i}", chunk) for i, chunk in enumerate(learner.policy)]


def _sync(folder: Path) -> None:
    """Flush the folder's files to disk, so that the rename publishes nothing half written."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _together(learner: Learner, path: Path, act: Callable[[], None], leader: bool = False) -> None:
    """Run `act` on the leader alone or on every rank; if it fails anywhere, every rank raises UserError."""
    reason = ""
    if learner.layout.leader or not leader:
        try:
            act()
        except _FAILURES as error:
            free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free
            reason = f"{_reason(error)} ({free / 2**20:.1f} MiB free)"
    reasons: list[str] = [""] * learner.layout.world
    dist.all_gather_object(reasons, reason)
    failed = next((r for r in reasons if r), None)
    if failed:
        remedy = "free space or change output, then --resume"
        raise UserError(f"checkpoint: cannot write {path}: {failed}; {remedy}")


def _reason(error: BaseException) -> str:
    """One line about `error`, or about the first failure that torch wrapped in it."""
    failures: dict[int, tuple[BaseException, Any]] = getattr(error, "failures", {})
    first = next((wrapped for wrapped, _ in failures.values()), error)
    return " ".join(f"{type(first).__name__}: {first}".split())[:200]
