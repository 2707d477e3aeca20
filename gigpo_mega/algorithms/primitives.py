"""What estimators are composed of: `step_columns`, `returns`, `anchor_groups`, `relative`, `combine`, ...

They compute in numpy, or in Triton if `step_columns` put the columns on a GPU; the values are the same bits.
They depend on nothing but a row's groups: rows may come in any order, and tasks may be sharded over any
number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gigpo_mega.algorithms.anchors import similar_groups
from gigpo_mega.algorithms.device import column_device
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Advantages, Float64, Int64, RowTable
from kernels.advantage import Penalty, Rule, StepColumns, relative
from kernels.advantage import returns as _returns
from kernels.advantage.reference import moments
from kernels.anchor import group_ids
from kernels.arrays import to_device, to_host, uses_triton

__all__ = [
    "PRESETS",
    "Preset",
    "anchor_groups",
    "combine",
    "float64_preset",
    "means",
    "observations",
    "relative",
    "returns",
    "step_columns",
]


@dataclass(frozen=True, slots=True)
class Preset:
    """The choices in which the official code differs from the paper's equations."""

    penalty: Penalty  # of an invalid action: part of r_t ("reward"), or taken from its own "row" alone
    members: Literal["trajectories", "rows"]  # what counts once in the statistics of a task (Eq. 3)
    keep_lone: bool  # the only member of a task keeps its score, instead of getting 0
    float32: bool  # scores, returns, means and standard deviations are rounded to float32

    def task_rule(self, cfg: AdvantageConfig) -> Rule:
        """How a score is compared with those of its task (Eq. 3)."""
        scale = cfg.normalization == "mean_std"
        return Rule(scale=scale, epsilon=cfg.epsilon, keep_lone=self.keep_lone, float32=self.float32)

    def anchor_rule(self, cfg: AdvantageConfig) -> Rule:
        """How a return is compared with those of its anchor group (Eq. 7)."""
        return Rule(scale=cfg.normalization == "mean_std", epsilon=cfg.epsilon, float32=self.float32)

    def task_members(self, steps: StepColumns[Any]) -> Any:
        """Whether each row enters the statistics of its task, bool [N]; None if all do."""
        return steps.step == 0 if self.members == "trajectories" else None


PRESETS = {
    "paper": Preset(penalty="reward", members="trajectories", keep_lone=False, float32=False),
    # langfengQ/verl-agent at 796ed31, gigpo/core_gigpo.py
    "reference": Preset(penalty="row", members="rows", keep_lone=True, float32=True),
}


def float64_preset(cfg: AdvantageConfig) -> Preset:
    """`cfg.preset` without the official code's rounding to float32."""
    return replace(PRESETS[cfg.preset], float32=False)


def step_columns(rows: RowTable, cfg: AdvantageConfig) -> StepColumns[Any]:
    """The columns of `rows` that primitives read, on the device that `cfg.backend` means.

    Task groups are numbered from 0 again if their numbers are not all below N.
    """
    group = rows.group
    if len(group) and not (group.min() >= 0 and group.max() < len(group)):
        group = np.unique(group, return_inverse=True)[1]
    penalty = np.where(rows.valid, 0.0, cfg.invalid_penalty)
    columns = (rows.reward, penalty, group, rows.trajectory, rows.step)
    device = column_device(cfg.backend, len(rows))
    return StepColumns(*columns) if device is None else StepColumns(*(to_device(c, device) for c in columns))


def returns(steps: StepColumns[Any], gamma: float, preset: Preset) -> tuple[Any, Any]:
    """The score `R(tau) = sum_t r_t` of each row's trajectory and the row's `R_t = sum_k gamma^k r_{t+k}`.

    Float64 [N] each (Eq. 5). Raises ValueError if a trajectory's steps are not 0, 1, 2, ... exactly once.
    """
    return _returns(steps, gamma, penalty=preset.penalty, float32=preset.float32)


def anchor_groups(rows: RowTable, steps: StepColumns[Any], cfg: AdvantageConfig) -> Any:
    """The anchor group of every row, int64 [N] in order of first appearance (Eq. 6).

    Rows of one task meet in a group if their anchor keys are equal, or with `cfg.similarity` if their
    observation texts are similar; the latter are compared on the host.
    """
    if cfg.similarity is None:
        return group_ids(steps.group, _beside(steps.group, rows.anchor.view(np.int64)))
    return _beside(steps.group, similar_groups(observations(rows, cfg), rows.group, cfg.similarity))


def observations(rows: RowTable, cfg: AdvantageConfig) -> list[str]:
    """The observation text of every row; raises ValueError if there are rows and none has one."""
    texts = [step.observation for step in rows.steps]
    if texts and not any(texts):
        raise ValueError(
            f"advantage.similarity {cfg.similarity} compares observation texts, but no step has one: "
            "record Step.observation, or unset advantage.similarity"
        )
    return texts


def _beside(other: Any, column: Any) -> Any:
    """The host's `column` on the device where `other` is."""
    return to_device(column, other.device) if uses_triton(other) else column


def means(values: Float64, group: Int64) -> Float64:
    """The mean of each row's `group` [N], float64 [N]; on the host. Equal values have exactly that mean."""
    return moments(values, group, int(group.max(initial=-1)) + 1).mean[group]


def combine(
    episode: Any, step: Any = None, omega: float = 0.0, step_group: Any = None, episode_weight: float = 1.0
) -> Advantages:
    """`A = episode_weight A_E + omega A_S` of float64 columns [N] (Eq. 8), in float32 on the host.

    Without `step`, A_S is 0.
    """
    episode = to_host(episode)
    step = np.zeros_like(episode) if step is None else to_host(step)
    ids = np.full(len(episode), -1, dtype=np.int64) if step_group is None else to_host(step_group)
    total = episode_weight * episode + omega * step
    total, episode, step = (level.astype(np.float32) for level in (total, episode, step))
    return Advantages(total, episode, step, ids)
