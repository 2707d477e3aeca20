"""Metrics of a run: per iteration a row of numbers, a summary line and a sample of the episodes.

Files grow by whole lines. A resumed run first drops the rows of the iterations that it will run again, so
that no iteration is recorded twice.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gigpo_mega.storage.files import replace_text
from gigpo_mega.telemetry.loggers import Logger
from gigpo_mega.types import Advantages, Group

EPISODES_KEPT = 4  # of the recorded group; enough to show which states they share

_SUMMARY = (
    ("success", "rollout/success", "{:.1%}"),
    ("reward", "rollout/score", "{:.2f}"),
    ("length", "rollout/length", "{:.1f}"),
    ("|A_E|", "advantage/episode_abs", "{:.2f}"),
    ("|A_S|", "advantage/step_abs", "{:.2f}"),
    ("loss", "loss/total", "{:.4f}"),
    ("action loss", "loss/action", "{:.3f}"),
    ("kl", "loss/kl", "{:.4f}"),
    ("grad", "optimizer/grad_norm", "{:.2f}"),
    ("gap", "engine/logprob_gap_mean", "{:.1e}"),
)
_STAGES = ("rollout", "advantage", "update", "push", "total")


class MetricsWriter:
    """`metrics.jsonl`, and the same numbers to `loggers`, one row per iteration.

    Args:
        output: the run's folder; created if absent.
        loggers: closed with this.
        resume_at: first iteration that this process will run; rows from it on are dropped.
    """

    def __init__(self, output: Path, loggers: Sequence[Logger] = (), resume_at: int = 0) -> None:
        output.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "episodes.jsonl"):
            drop_from(output / name, resume_at)
        self._rows = (output / "metrics.jsonl").open("a", encoding="utf-8")
        self._loggers = loggers

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one iteration; other processes can read them when this returns."""
        numbers = {name: float(value) for name, value in values.items()}
        self._rows.write(json.dumps({"iteration": iteration, **numbers}) + "\n")
        self._rows.flush()
        self._log(iteration, numbers)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Give the loggers an evaluation's record, as scalars of its iteration; it has a file of its own."""
        kinds = {f"success/{re.sub('[^A-Za-z0-9_.-]+', '_', kind)}": of["success"]
                 for kind, of in record["kinds"].items()}  # fmt: skip
        numbers = {name: record[name] for name in ("success", "standard_error", "score", "length", "invalid")}
        self._log(record["iteration"], {f"evaluation/{name}": v for name, v in (numbers | kinds).items()})

    def close(self) -> None:
        """Close the file and the loggers."""
        self._rows.close()
        for logger in self._loggers:
            logger.close()

    def _log(self, iteration: int, numbers: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.write(iteration, numbers)


def print_summary(label: str, values: Mapping[str, float], left: float | None = None) -> None:
    """Print the line of an iteration; apart from the files, as stdout may be closed when they are not."""
    sys.stdout.write(summary(label, values, left) + "\n")
    sys.stdout.flush()


def summary(label: str, values: Mapping[str, float], left: float | None = None) -> str:
    """One line: `label`, e.g. "12/36", the main metrics that are there, and the seconds `left` of the run."""
    parts = [f"{label} {form.format(values[name])}" for label, name, form in _SUMMARY if name in values]
    if "rollout/tokens_per_second" in values:
        parts.append(f"{values['rollout/tokens_per_second']:.0f} tok/s")
    times = [f"{name} {values[f'time/{name}']:.1f}s" for name in _STAGES if f"time/{name}" in values]
    ending = [f"{duration(left)} left"] if left is not None else []
    return f"[{label}] " + "  ".join([*parts, *([" ".join(times)] if times else []), *ending])


def duration(seconds: float) -> str:
    """`50 s`, `4 min` or `1 h 20 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def peak_memory(cuda: bool) -> float:
    """The most GiB that this process held so far: of its GPU if `cuda` (by torch), else of main memory."""
    if cuda:
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of KiB


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, without a last line that a killed process left unfinished."""
    if not path.exists():
        return []
    # Bytes: text would also be split at U+2028, which observations hold, and may end within a character.
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def drop_from(path: Path, iteration: int) -> None:
    """Keep only the rows before `iteration`, atomically."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row["iteration"] < iteration]
    replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def record_episodes(path: Path, iteration: int, groups: Sequence[Group], advantages: Advantages) -> None:
    """Append the most informative group of an iteration to `path`, as one JSON line.

    That is the group whose scores vary most, then the one whose steps share most anchor states. `advantages`
    is aligned with `RowTable.from_groups(groups)`. `shared` counts the other steps of the whole iteration in
    the same anchor group; it is 0, and `group` -1, for estimators without a step level.
    """
    sizes = np.bincount(advantages.step_group[advantages.step_group >= 0], minlength=1)
    starts = np.cumsum([0, *(sum(len(t.steps) for t in group.trajectories) for group in groups)])

    def information(index: int) -> tuple[float, float]:
        ids = advantages.step_group[starts[index] : starts[index + 1]]
        spread = float(np.var([t.score for t in groups[index].trajectories]))
        return spread, float(sizes[ids[ids >= 0]].sum())

    if not groups:
        return
    chosen = max(range(len(groups)), key=information)
    record = _group_record(groups[chosen], int(starts[chosen]), advantages, sizes)
    with path.open("a", encoding="utf-8", errors="replace") as file:  # observations may hold lone surrogates
        file.write(json.dumps({"iteration": iteration, **record}, ensure_ascii=False) + "\n")


def _group_record(group: Group, row: int, advantages: Advantages, sizes: np.ndarray) -> dict[str, Any]:
    """A group whose first step is in `row`: up to EPISODES_KEPT episodes, successes and failures in turn."""
    won: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    for trajectory in group.trajectories:
        steps: list[dict[str, Any]] = []
        for step in trajectory.steps:
            anchor = int(advantages.step_group[row])
            steps.append({
                "observation": step.observation, "action": step.action, "reward": step.reward,
                "valid": step.valid, "episode": round(float(advantages.episode[row]), 4),
                "step": round(float(advantages.step[row]), 4), "group": anchor,
                "shared": int(sizes[anchor]) - 1 if anchor >= 0 else 0,
            })
            row += 1
        (won if trajectory.success else lost).append({
            "success": trajectory.success, "score": trajectory.score,
            "ended_by": trajectory.ended_by, "steps": steps,
        })
    ranked = sorted([*enumerate(won), *enumerate(lost)], key=lambda pair: pair[0])
    kept = [episode for _, episode in ranked[:EPISODES_KEPT]]
    return {"task": group.task.id, "kind": group.task.kind, "episodes": kept}
