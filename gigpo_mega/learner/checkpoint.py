"""Full-state checkpoints: weights, optimizer, RNG, iterations and updates, published by one rename."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from gigpo_mega.config import CheckpointConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import random_state, shards, torch_adam
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.learner import Learner, finite_everywhere
from gigpo_mega.storage import manifest
from gigpo_mega.storage.files import publish

_FAILURES = (Exception, CheckpointException)  # torch's derives from BaseException


@dataclass(frozen=True, slots=True)
class _Pending:
    """A checkpoint that is being written."""

    iteration: int
    partial: Path
    writing: shards.Writing
    state: dict[str, Any]  # state.json but for the files


class Checkpoints:
    """The checkpoints of a run, `iteration_000010` and so on under one folder; every rank holds one."""

    def __init__(self, folder: Path, cfg: CheckpointConfig) -> None:
        self._folder, self._cfg = folder, cfg
        self._pending: _Pending | None = None

    def newest(self) -> int | None:
        """The iteration of the newest checkpoint, or None."""
        return max(self._all(), default=None)

    def oldest(self) -> int | None:
        """The iteration of the oldest checkpoint, or None."""
        return min(self._all(), default=None)

    def resumable(self, layout: Layout) -> int:
        """The iteration to resume from, that of the newest intact checkpoint; 0 if there is none at all.

        Every file is read and compared with its checksum, by one of the ranks, which call this together.
        Newer checkpoints that are damaged are named on stderr, with the file. Raises UserError if every one
        is damaged.
        """
        box = [sorted(self._all(), reverse=True)]
        dist.broadcast_object_list(box)  # a rank may see a shared folder as it was a moment ago
        [iterations] = box
        for iteration in iterations:
            path = self._path(iteration)
            reasons: list[str | None] = [None] * layout.world
            dist.all_gather_object(reasons, _damage(path, layout))
            damage = next((reason for reason in reasons if reason), None)
            if damage is None:
                return iteration
            if layout.leader:
                sys.stderr.write(f"{path} is damaged ({damage}); trying the one before it\n")
        if iterations:
            raise UserError(f"output: every checkpoint in {self._folder} is damaged; choose another output")
        return 0

    def save(self, learner: Learner) -> None:
        """Write everything, then rename; older checkpoints beyond `keep` go afterwards.

        With `background`, only copies the state: the checkpoint appears with a later call of `poll` or
        `finish`. Raises UserError, on every rank, if a weight is not finite or it cannot be written; the last
        good checkpoint stays as it was.
        """
        self.finish(learner)
        learner.synchronize()
        # Agreed on before anyone writes: a rank that fails alone would miss megatron's collectives.
        if not finite_everywhere(learner.policy.parameters()):
            raise UserError(
                "checkpoint: a weight of the policy is not finite; --resume goes on from the last checkpoint"
            )
        partial = self._path(learner.iteration).with_suffix(".partial")
        try:
            _together(learner, partial, lambda: self._fresh(partial, shards.size(learner)), leader=True)
            _together(learner, partial, lambda: self._begin(learner, partial))
            if not self._cfg.background:
                self._complete(learner)
        except UserError:
            self._give_up(learner, partial)
            raise

    def poll(self, learner: Learner) -> None:
        """Publish the checkpoint that `save` began, once every rank has written its part."""
        if self._pending is None:
            return
        done: list[bool] = [False] * learner.layout.world
        dist.all_gather_object(done, self._pending.writing.done)
        if all(done):
            self.finish(learner)

    def finish(self, learner: Learner) -> None:
        """Wait for the checkpoint that `save` began, and publish it."""
        if self._pending is None:
            return
        partial = self._pending.partial
        try:
            self._complete(learner)
        except UserError:
            self._give_up(learner, partial)
            raise

    def load(self, learner: Learner, iteration: int) -> None:
        """Restore what `save` wrote; raises UserError for a damaged checkpoint or one of another model."""
        path = self._path(iteration)
        try:
            state = json.loads((path / manifest.STATE).read_text())
            found, here = {"lora": None, "rope_scaling": None} | state["shape"], _described(learner)
            if different := [f"{k} {found.get(k)} (here {v})" for k, v in here.items() if found.get(k) != v]:
                raise UserError(
                    f"output: {path} is a checkpoint of another model: {', '.join(different)}; "
                    "choose another output or the model it was made with"
                )
            written, asked = state["distributed_optimizer"], learner.distributed_optimizer
            if written != asked:
                raise UserError(
                    f"output: {path} was written with parallel.distributed_optimizer "
                    f"{str(written).lower()}, not {str(asked).lower()}; set it so"
                )
            if torch_adam.USED and state["optimizer_steps"] is None:
                raise UserError(
                    f"output: {path} was written with the Adam of Transformer Engine or Apex, which keeps no "
                    "step of each parameter as torch's does; install one of them here, or choose another "
                    "output"
                )
            shards.read(learner, path / manifest.LEARNER, state["optimizer_steps"])
            random_state.load(path / "random.pt")
        except UserError:
            raise
        except _FAILURES as error:
            raise UserError(
                f"output: cannot read {path}: {_reason(error)}; if it is damaged, move it away to resume "
                "from an older one"
            ) from error
        learner.iteration, learner.updates = iteration, state["updates"]

    def _all(self) -> list[int]:
        return [int(path.name.split("_")[1]) for path in self._folder.glob("iteration_*[0-9]")]

    def _path(self, iteration: int) -> Path:
        return self._folder / f"iteration_{iteration:06d}"

    def _fresh(self, partial: Path, size: int) -> None:
        """An empty folder on a disk with room for `size` bytes, and none that a killed run left behind."""
        for stale in self._folder.glob("*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        (partial / manifest.LEARNER).mkdir(parents=True)
        if shutil.disk_usage(partial).free < size:
            raise OSError(f"a checkpoint needs {size / 2**20:.1f} MiB")

    def _begin(self, learner: Learner, partial: Path) -> None:
        """Copy the state as it is now; the copy is written from here on."""
        writing = shards.Writing(learner, partial / manifest.LEARNER, self._cfg.background)
        if learner.layout.leader:
            random_state.save(partial / "random.pt")
        state = {
            "iteration": learner.iteration,
            "shape": _described(learner),
            "updates": learner.updates,
            "distributed_optimizer": learner.distributed_optimizer,
            "optimizer_steps": torch_adam.step_count(learner.optimizer) if torch_adam.USED else None,
        }
        self._pending = _Pending(learner.iteration, partial, writing, state)

    def _complete(self, learner: Learner) -> None:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        _together(learner, pending.partial, pending.writing.wait)
        _together(learner, pending.partial, pending.writing.finalize)
        files: list[manifest.Files] = [{}] * learner.layout.world
        dist.all_gather_object(files, pending.writing.files)
        final = self._path(pending.iteration)
        _together(learner, final, lambda: self._publish(pending, files, final), leader=True)

    def _publish(self, pending: _Pending, written: list[manifest.Files], final: Path) -> None:
        """Describe what the ranks have `written` and what this one did, rename, forget older checkpoints."""
        partial = pending.partial
        files = {f"{manifest.LEARNER}/{name}": entry for part in written for name, entry in part.items()}
        others = (p for p in partial.rglob("*") if p.is_file() and str(p.relative_to(partial)) not in files)
        files |= manifest.describe(partial, others)
        (partial / manifest.STATE).write_text(json.dumps(pending.state | {"files": files}, indent=1))
        publish(partial, final)
        past = sorted(i for i in self._all() if i <= pending.iteration)
        for iteration in past[: -self._cfg.keep]:
            shutil.rmtree(self._path(iteration))

    def _give_up(self, learner: Learner, partial: Path) -> None:
        self._pending = None
        if learner.layout.leader:
            shutil.rmtree(partial, ignore_errors=True)


def _damage(path: Path, layout: Layout) -> str | None:
    """What is wrong with a checkpoint as far as this rank looks, or None."""
    try:
        files: manifest.Files = json.loads((path / manifest.STATE).read_text())["files"]
        return manifest.damage(path, manifest.share(files, layout.world, layout.rank))
    except (OSError, ValueError, KeyError) as error:
        return f"{manifest.STATE}: {_reason(error)}"


def _described(learner: Learner) -> dict[str, Any]:
    """The numbers that a checkpoint must share with the learner that reads it."""
    return asdict(learner.shape) | {"lora": asdict(learner.lora) if learner.lora else None}


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
