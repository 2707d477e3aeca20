"""Full-state checkpoints: weights, optimizer, scheduler, RNG and iteration, published by one rename."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gigpo_mega.config import CheckpointConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner.update import Learner

from megatron.core import dist_checkpointing  # isort: skip  (learner.update has installed the CPU patches)
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer  # isort: skip

# Optimizer shards that a run with another layout can read.
_SHARDING: dict[str, Any] = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}
_STATE = "state.json"


class Checkpoints:
    """The checkpoints of a run, `iteration_000010` and so on under one folder; every rank holds one."""

    def __init__(self, folder: Path, cfg: CheckpointConfig) -> None:
        self._folder, self._cfg = folder, cfg

    def newest(self) -> int | None:
        """The iteration of the newest complete checkpoint, or None."""
        return max(self._complete(), default=None)

    def oldest(self) -> int | None:
        """The iteration of the oldest complete checkpoint, or None."""
        return min(self._complete(), default=None)

    def _complete(self) -> list[int]:
        return [int(p.parent.name.split("_")[1]) for p in self._folder.glob(f"iteration_*[0-9]/{_STATE}")]

    def save(self, learner: Learner) -> None:
        """Write everything, then rename; older checkpoints beyond `keep` go afterwards.

        Raises UserError where it cannot be written; the last good checkpoint stays as it was.
        """
        iteration = learner.iteration
        final = self._path(iteration)
        partial = final.with_name(final.name + ".partial")
        _together(learner, f"cannot prepare {partial}", lambda: _fresh(partial, _size(learner)), leader=True)
        _together(learner, f"cannot write {partial}", lambda: _write(learner, partial))
        _together(learner, f"cannot publish {final}", lambda: self._publish(partial, final), leader=True)

    def load(self, learner: Learner, iteration: int) -> None:
        """Restore what `save` wrote; raises UserError for a damaged checkpoint or one of another model."""
        path = self._path(iteration)
        state = json.loads((path / _STATE).read_text())
        shape = asdict(learner.shape)
        different = [
            f"{k} {state['shape'].get(k)} (here {v})" for k, v in shape.items() if state["shape"].get(k) != v
        ]
        if different:
            raise UserError(
                f"output: {path} is a checkpoint of another model: {', '.join(different)}; "
                "choose another output or the model it was made with"
            )
        try:
            _read(learner, path, state)
            learner.iteration = iteration
        except Exception as error:
            raise UserError(
                f"output: cannot read {path}: {error}; delete it to resume from an older one"
            ) from error

    def _path(self, iteration: int) -> Path:
        return self._folder / f"iteration_{iteration:06d}"

    def _publish(self, partial: Path, final: Path) -> None:
        _sync(partial)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        for old in sorted(self._folder.glob("iteration_*[0-9]"))[: -self._cfg.keep]:
            shutil.rmtree(old)


def _fresh(partial: Path, size: int) -> None:
    """An empty folder on a disk with room for `size` bytes."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    free = shutil.disk_usage(partial).free
    if free < size:
        raise OSError(f"the disk has {free / 2**20:.0f} MiB free, a checkpoint needs {size / 2**20:.0f} MiB")


def _size(learner: Learner) -> int:
    """Bytes of a checkpoint: a weight, an fp32 copy and two moments per parameter, over all tensor ranks."""
    return (
        sum(p.numel() * (p.element_size() + 12) for p in learner.policy.parameters()) * learner.layout.tensor
    )


def _write(learner: Learner, partial: Path) -> None:
    _save_sharded(learner, partial / "learner")
    if learner.layout.leader:
        torch.save(_rng_state(), partial / "rng.pt")
        state = {
            "iteration": learner.iteration,
            "shape": asdict(learner.shape),
            "scheduler": learner.scheduler.state_dict(),
            "optimizer_steps": float(_step_count(learner)),
        }
        (partial / _STATE).write_text(json.dumps(state, indent=1))


def _read(learner: Learner, path: Path, state: dict[str, Any]) -> None:
    if not HAVE_APEX_OR_TE:
        _prefill_torch_adam(learner.optimizer)
    loaded = dist_checkpointing.load(_sharded(learner, loading=True), str(path / "learner"))
    learner.policy.load_state_dict(loaded["model"])
    learner.optimizer.load_state_dict(loaded["optimizer"])
    if not HAVE_APEX_OR_TE:
        _restore_step_counts(learner.optimizer, state["optimizer_steps"])
    learner.scheduler.load_state_dict(state["scheduler"])
    _set_rng_state(torch.load(path / "rng.pt", weights_only=False))


def _save_sharded(learner: Learner, folder: Path) -> None:
    if learner.layout.leader:
        folder.mkdir()
    dist.barrier()
    dist_checkpointing.save(_sharded(learner, loading=False), str(folder), content_metadata=_SHARDING)


def _sharded(learner: Learner, loading: bool) -> dict[str, Any]:
    metadata = _SHARDING | {"dp_cp_group": learner.layout.data_group}
    model = learner.policy.sharded_state_dict(metadata=metadata)
    kind = {"metadata": metadata} if _is_distributed(learner.optimizer) else {}
    return {
        "model": model,
        "optimizer": learner.optimizer.sharded_state_dict(model, is_loading=loading, **kind),
    }


def _is_distributed(optimizer: Any) -> bool:
    return isinstance(_parts(optimizer)[0], DistributedOptimizer)


def _parts(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _prefill_torch_adam(optimizer: Any) -> None:
    """Without TE or Apex the distributed optimizer asserts that torch's Adam already has state before
    loading."""
    for part in _parts(optimizer):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                if not part.optimizer.state[parameter]:
                    part.optimizer.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def _step_count(learner: Learner) -> float:
    counts = {float(s["step"]) for part in _parts(learner.optimizer) for s in part.optimizer.state.values()}
    assert len(counts) <= 1, f"parameters disagree on Adam's step: {counts}"
    return counts.pop() if counts else 0.0


def _restore_step_counts(optimizer: Any, steps: float) -> None:
    """Give every parameter its own step tensor: loading makes all share one, which Adam would count up
    many times."""
    for part in _parts(optimizer):
        for state in part.optimizer.state.values():
            state["step"] = torch.tensor(steps)


def _keep_step_on_load() -> None:
    """Loading replaces a parameter's whole Adam state but never carries `step`: hand the present one
    through."""
    original = DistributedOptimizer._set_main_param_and_optimizer_states

    def with_step(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state and "step" not in tensors:
            tensors = {**tensors, "step": state["step"]}
        original(self, model_param, tensors)

    patched: Any = DistributedOptimizer
    patched._set_main_param_and_optimizer_states = with_step


if not HAVE_APEX_OR_TE:
    _keep_step_on_load()


def _rng_state() -> dict[str, Any]:
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


def _sync(folder: Path) -> None:
    """Flush the folder's files to disk, so that the rename publishes nothing half written."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _together(learner: Learner, what: str, act: Callable[[], None], leader: bool = False) -> None:
    """Run `act` (on the leader alone, or on every rank); if it fails anywhere, every rank raises
    UserError."""
    reason = ""
    if learner.layout.leader or not leader:
        try:
            act()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    reasons: list[str] = [""] * learner.layout.world
    dist.all_gather_object(reasons, reason)
    failed = next((r for r in reasons if r), None)
    if failed:
        raise UserError(f"checkpoint: {what}: {failed[:200]}; free space or change output, then --resume")
