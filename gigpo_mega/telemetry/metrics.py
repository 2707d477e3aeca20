"""What a run writes down: a row of numbers and a readable line per iteration, a group of episodes to look at.

All files grow by whole lines. A resumed run first drops what lies at or past the iteration it starts from, so
that a folder never tells of an iteration twice.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gigpo_mega.types import Advantages, Group

EPISODES_KEPT = 4  # of the recorded group; enough to see which states they share

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
    """`metrics.jsonl`, TensorBoard events and a summary line on stdout, one of each per iteration.

    Args:
        output: the run's folder; created if absent.
        resume_at: first iteration this process will run; rows at or past it are dropped. 0 starts afresh.
    """

    def __init__(self, output: Path, resume_at: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # takes seconds: only where a run writes

        output.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "episodes.jsonl"):
            drop_from(output / name, resume_at)
        self._rows = (output / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = SummaryWriter(str(output / "tensorboard"), purge_step=resume_at)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of iteration `step`: on disk when this returns, readable by another process."""
        numbers = {name: float(value) for name, value in values.items()}
        self._rows.write(json.dumps({"step": step, **numbers}) + "\n")
        self._rows.flush()
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        sys.stdout.write(summary(step, numbers) + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Finish both files."""
        self._rows.close()
        self._events.close()


def summary(step: int, values: Mapping[str, float]) -> str:
    """One line for people; metrics that are absent are left out."""
    parts = [f"{label} {form.format(values[name])}" for label, name, form in _SUMMARY if name in values]
    if values.get("time/rollout") and "rollout/tokens" in values:
        parts.append(f"{values['rollout/tokens'] / values['time/rollout']:.0f} tok/s")
    times = [f"{name} {values[f'time/{name}']:.1f}s" for name in _STAGES if f"time/{name}" in values]
    return f"[{step}] " + "  ".join([*parts, *([" ".join(times)] if times else [])])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, without a last line that a killed process left unfinished."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def drop_from(path: Path, step: int) -> None:
    """Keep only the rows before iteration `step`, atomically."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row["step"] < step]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    os.replace(partial, path)


def record_episodes(path: Path, step: int, groups: Sequence[Group], advantages: Advantages) -> None:
    """Append the most telling group of iteration `step` to `path`, as one JSON line.

    Most telling is the group whose outcomes differ most, then the one whose steps share most anchor states.
    `advantages` is aligned with `RowTable.from_groups(groups)`. `shared` counts the other steps of the whole
    iteration in the same anchor group; it is 0, and `group` -1, for estimators without a step level.
    """
    sizes = np.bincount(advantages.step_group[advantages.step_group >= 0], minlength=1)
    starts = np.cumsum([0, *(sum(len(t.steps) for t in group.trajectories) for group in groups)])

    def telling(index: int) -> tuple[float, float]:
        ids = advantages.step_group[starts[index] : starts[index + 1]]
        spread = float(np.var([t.score for t in groups[index].trajectories]))
        return spread, float(sizes[ids[ids >= 0]].sum())

    if not groups:
        return
    chosen = max(range(len(groups)), key=telling)
    record = _describe(groups[chosen], int(starts[chosen]), advantages, sizes)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **record}, ensure_ascii=False) + "\n")


def _describe(group: Group, start: int, advantages: Advantages, sizes: np.ndarray) -> dict[str, Any]:
    episodes: list[dict[str, Any]] = []
    for trajectory in group.trajectories:
        steps: list[dict[str, Any]] = []
        for row, step in enumerate(trajectory.steps, start):
            anchor = int(advantages.step_group[row])
            steps.append({
                "observation": step.observation, "action": step.action, "reward": step.reward,
                "valid": step.valid, "episode": round(float(advantages.episode[row]), 4),
                "step": round(float(advantages.step[row]), 4), "group": anchor,
                "shared": int(sizes[anchor]) - 1 if anchor >= 0 else 0,
            })
        start += len(trajectory.steps)
        episodes.append({"success": trajectory.success, "score": trajectory.score,
                         "ended_by": trajectory.ended_by, "steps": steps})
    return {"task": group.task.id, "kind": group.task.kind, "episodes": _mixed(episodes)}


def _mixed(episodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to EPISODES_KEPT episodes, successes and failures in turn."""
    won = [episode for episode in episodes if episode["success"]]
    lost = [episode for episode in episodes if not episode["success"]]
    ranked = sorted([*enumerate(won), *enumerate(lost)], key=lambda pair: pair[0])
    return [episode for _, episode in ranked[:EPISODES_KEPT]]
