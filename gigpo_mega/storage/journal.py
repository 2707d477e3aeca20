"""Collected groups on disk, a file each: a killed run does not sample them again."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from envs.base import LARGEST_REWARD, Task
from gigpo_mega.errors import UserError
from gigpo_mega.storage.files import publish, replacing
from gigpo_mega.types import Float32, Group, Step, Trajectory

_SCALARS = ("reward", "valid", "observation", "action", "success", "next_observation")
_PARTIAL, _REJECTED = ".partial", ".rejected"
_LEARNER = "learner.npy"
# RuntimeError: the archive seems to be encrypted, or of a method or version that zipfile has not.
_DAMAGED = (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


class Journal:
    """The groups of each iteration in a folder under `folder`, each with its number in the iteration.

    A group's file appears whole or not at all; an iteration's groups are in NNNNNN.partial until `finish`.
    Beside those that were learned from are the learner's log-probabilities.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, iteration: int, number: int, group: Group) -> None:
        """Keep a group of an iteration that is being sampled.

        Raises UserError if the disk refuses, or for a reward that is not finite: a resumed run would meet it
        again.
        """
        if not all(abs(s.reward) <= LARGEST_REWARD for t in group.trajectories for s in t.steps):
            raise UserError(
                f"task {group.task.id}: the environment returned a reward that is not finite or exceeds "
                f"{LARGEST_REWARD:g} in size; correct it, then --resume plays the group again"
            )
        path = self._path(iteration, _PARTIAL) / f"{number:06d}.npz"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                np.savez_compressed(file, allow_pickle=False, **_columns(group))
        except OSError as error:
            raise _refused(path, error) from None

    def begun(self, iteration: int) -> dict[int, Group]:
        """What was kept of an iteration that was not finished, by number in increasing order."""
        return {int(path.stem): _read(path) for path in _files(self._path(iteration, _PARTIAL))}

    def finish(self, iteration: int) -> None:
        """The groups kept are all of `iteration`; raises UserError if the disk refuses."""
        try:
            publish(self._path(iteration, _PARTIAL), self._path(iteration))
        except OSError as error:
            raise _refused(self._path(iteration), error) from None

    def copy(self, iteration: int, other: Journal) -> None:
        """Keep what `other` has of `iteration`; raises UserError if there is nothing or the disk refuses."""
        partial = self._path(iteration, _PARTIAL)
        try:
            others = shutil.ignore_patterns(_LEARNER)
            shutil.copytree(other._path(iteration), partial, dirs_exist_ok=True, ignore=others)
        except (OSError, shutil.Error) as error:
            raise _refused(partial, error) from None
        self.finish(iteration)

    def has(self, iteration: int) -> bool:
        """Whether all groups of `iteration` are kept."""
        return self._path(iteration).exists()

    def read(self, iteration: int) -> tuple[Group, ...]:
        """The groups of `iteration`, equal to those kept; raises UserError for a damaged file."""
        return tuple(map(_read, _files(self._path(iteration))))

    def iterations(self) -> list[int]:
        """The iterations of which there are groups, finished or not, in increasing order."""
        found = [*self._folder.glob("[0-9]*[0-9]"), *self._folder.glob(f"[0-9]*{_PARTIAL}")]
        return sorted({int(path.stem) for path in found})

    def numbers(self, iteration: int) -> list[int]:
        """The groups kept of `iteration`, finished or not, in increasing order."""
        return sorted({int(file.stem) for folder in self._folders(iteration) for file in _files(folder)})

    def group(self, iteration: int, number: int) -> Group:
        """A group of an iteration, finished or not.

        Raises UserError for a damaged file, FileNotFoundError if there is no such group.
        """
        # The folder may be renamed between a look and a read.
        for folder in reversed(self._folders(iteration)):
            path = folder / f"{number:06d}.npz"
            if path.exists():
                with suppress(_Gone):
                    return _read(path)
        raise FileNotFoundError(f"{self._path(iteration)} has no group {number}")

    def keep_learner(self, iteration: int, logprobs: Float32) -> None:
        """Keep the learner's log-probabilities of all response tokens of `iteration`, group after group.

        NaN where the learner has none. Raises OSError if the disk refuses.
        """
        with replacing(self._path(iteration) / _LEARNER) as file:
            np.save(file, logprobs, allow_pickle=False)

    def learner(self, iteration: int) -> Float32 | None:
        """What `keep_learner` kept, or None; raises UserError for a damaged file."""
        path = self._path(iteration) / _LEARNER
        try:
            return np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"output: cannot read {path}: {error}; remove it to go without") from None

    def set_aside(self, iteration: int) -> Path:
        """Rename the folder of `iteration`: it is sampled again, but can be read; returns the new path."""
        aside = self._path(iteration, _REJECTED)
        for kept in (self._path(iteration), self._path(iteration, _PARTIAL)):
            if kept.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(kept, aside)
        return aside

    def set_aside_from(self, first: int) -> list[int]:
        """Set aside the groups of `first` and of all later iterations; returns these iterations."""
        later = [iteration for iteration in self.iterations() if iteration >= first]
        for iteration in later:
            self.set_aside(iteration)
        return later

    def forget(self, before: int, limit: float | None = 0) -> None:
        """Drop the oldest iterations before `before` until all groups take `limit` bytes; None: no limit.

        No resume needs iterations before `before`.
        """
        if limit is None:
            return
        iterations = self.iterations()
        sizes = {iteration: sum(map(_size, self._folders(iteration))) for iteration in iterations}
        for iteration in iterations:
            if iteration < before and sum(sizes.values()) > limit:
                del sizes[iteration]
                for folder in self._folders(iteration):
                    shutil.rmtree(folder, ignore_errors=True)

    def _folders(self, iteration: int) -> list[Path]:
        return [self._path(iteration, suffix) for suffix in ("", _PARTIAL)]

    def _path(self, iteration: int, suffix: str = "") -> Path:
        return self._folder / f"{iteration:06d}{suffix}"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*"))


def _refused(path: Path, error: OSError) -> UserError:
    return UserError(f"output: cannot keep groups in {path}: {error}; free space, then --resume")


class _Gone(UserError):
    """A file that was there a moment ago."""


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def _read(path: Path) -> Group:
    try:
        with np.load(path, allow_pickle=False) as file:
            return _group({name: file[name] for name in file.files})
    except _DAMAGED as error:
        kind = _Gone if isinstance(error, FileNotFoundError) else UserError
        raise kind(
            f"output: cannot read {path}: {error}; remove {path.parent} to sample the iteration again"
        ) from None


def _columns(group: Group) -> dict[str, Any]:
    steps = [step for trajectory in group.trajectories for step in trajectory.steps]
    text = {
        "task": asdict(group.task),
        "trajectories": [
            {"score": t.score, "success": t.success, "ended_by": t.ended_by,
             "steps": [{name: getattr(s, name) for name in _SCALARS} for s in t.steps]}
            for t in group.trajectories
        ],
    }  # fmt: skip
    return {
        "prompt_ids": _flat([s.prompt_ids for s in steps], np.int32),
        "prompt_lengths": np.array([len(s.prompt_ids) for s in steps], dtype=np.int64),
        "response_ids": _flat([s.response_ids for s in steps], np.int32),
        "response_lengths": np.array([len(s.response_ids) for s in steps], dtype=np.int64),
        "logprobs": _flat([s.logprobs for s in steps], np.float32),
        "versions": _flat([s.versions for s in steps], np.int32),
        "anchors": np.frombuffer(b"".join(s.anchor + s.next_anchor for s in steps), dtype=np.uint8),
        "group": np.frombuffer(json.dumps(text).encode(), dtype=np.uint8),
    }


def _flat(arrays: list[Any], dtype: Any) -> Any:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)


def _group(columns: dict[str, Any]) -> Group:
    responses = np.cumsum(columns["response_lengths"])[:-1]
    tokens = zip(
        np.split(columns["prompt_ids"], np.cumsum(columns["prompt_lengths"])[:-1]),
        np.split(columns["response_ids"], responses),
        np.split(columns["logprobs"], responses),
        np.split(columns["versions"], responses),
        columns["anchors"].reshape(-1, 2, 16),
        strict=True,
    )

    def step(scalars: dict[str, Any]) -> Step:
        prompt, response, logprobs, versions, (anchor, after) = next(tokens)
        keys = {"anchor": anchor.tobytes(), "next_anchor": after.tobytes()}
        return Step(prompt, response, logprobs, versions=versions, **keys, **scalars)

    text = json.loads(columns["group"].tobytes())
    task = Task(**text["task"])
    trajectories = [
        Trajectory(task, tuple(map(step, row["steps"])), row["score"], row["success"], row["ended_by"])
        for row in text["trajectories"]
    ]
    return Group(task, tuple(trajectories))
