"""Collected groups on disk, one file an iteration: what a killed run does not have to sample again."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from envs.base import Task
from gigpo_mega.errors import UserError
from gigpo_mega.types import Group, Step, Trajectory

_SCALARS = ("reward", "valid", "version", "observation", "action")


class Journal:
    """The groups of each iteration under `folder`; a file appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, step: int) -> bool:
        """True where the groups of iteration `step` were kept."""
        return self._path(step).exists()

    def write(self, step: int, groups: Sequence[Group]) -> None:
        """Keep `groups` as those of iteration `step`; raises UserError where the disk refuses."""
        path = self._path(step)
        partial = path.with_suffix(".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **_columns(groups))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"output: cannot keep groups in {path}: {error}; free space, then --resume"
            ) from None

    def read(self, step: int) -> tuple[Group, ...]:
        """The groups of iteration `step`, equal to those written; raises UserError for a damaged file."""
        path = self._path(step)
        try:
            with np.load(path, allow_pickle=False) as file:
                return _groups({name: file[name] for name in file.files})
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"output: cannot read {path}: {error}; delete it to sample the iteration again"
            ) from None

    def drop(self, step: int) -> None:
        """Forget the groups of iteration `step`, which are to be sampled again."""
        self._path(step).unlink(missing_ok=True)

    def forget(self, before: int) -> None:
        """Drop the groups of iterations before `before`, which a checkpoint has made superfluous."""
        for path in self._folder.glob("[0-9]*.npz"):
            if int(path.stem) < before:
                path.unlink()

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:06d}.npz"


def _columns(groups: Sequence[Group]) -> dict[str, Any]:
    steps = [s for g in groups for t in g.trajectories for s in t.steps]
    text = [
        {
            "task": asdict(g.task),
            "trajectories": [
                {"score": t.score, "success": t.success, "ended_by": t.ended_by,
                 "steps": [{name: getattr(s, name) for name in _SCALARS} for s in t.steps]}
                for t in g.trajectories
            ],
        }
        for g in groups
    ]  # fmt: skip
    return {
        "prompt_ids": _flat([s.prompt_ids for s in steps], np.int32),
        "prompt_lengths": np.array([len(s.prompt_ids) for s in steps], dtype=np.int64),
        "response_ids": _flat([s.response_ids for s in steps], np.int32),
        "response_lengths": np.array([len(s.response_ids) for s in steps], dtype=np.int64),
        "logprobs": _flat([s.logprobs for s in steps], np.float32),
        "anchors": np.frombuffer(b"".join(s.anchor for s in steps), dtype=np.uint8),
        "groups": np.frombuffer(json.dumps(text).encode(), dtype=np.uint8),
    }


def _flat(arrays: list[Any], dtype: Any) -> Any:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)


def _groups(columns: dict[str, Any]) -> tuple[Group, ...]:
    responses = np.cumsum(columns["response_lengths"])[:-1]
    prompts = np.split(columns["prompt_ids"], np.cumsum(columns["prompt_lengths"])[:-1])
    tokens = zip(
        prompts, np.split(columns["response_ids"], responses), np.split(columns["logprobs"], responses),
        columns["anchors"].reshape(-1, 16), strict=True,
    )  # fmt: skip

    def step(scalars: dict[str, Any]) -> Step:
        prompt, response, logprobs, anchor = next(tokens)
        return Step(prompt, response, logprobs, anchor=anchor.tobytes(), **scalars)

    def trajectory(task: Task, row: dict[str, Any]) -> Trajectory:
        steps = tuple(step(s) for s in row["steps"])
        return Trajectory(task, steps, row["score"], row["success"], row["ended_by"])

    result: list[Group] = []
    for row in json.loads(columns["groups"].tobytes()):
        task = Task(**row["task"])
        result.append(Group(task, tuple(trajectory(task, t) for t in row["trajectories"])))
    return tuple(result)
