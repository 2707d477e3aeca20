"""Where steps come from and lead to: neighbors in a trajectory, and the graph of a task's states.

All on the host, in numpy; the order of the rows changes nothing but the numbers that states get.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gigpo_mega.algorithms.anchors import similar_groups
from gigpo_mega.algorithms.primitives import observations
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Bool, Float64, Int64, RowTable
from kernels.advantage import StepColumns
from kernels.advantage.reference import timeline_of
from kernels.anchor import group_ids


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The rows before and after each row in its trajectory."""

    previous: Int64  # [N] -1 for a first step
    following: Int64  # [N] -1 for a last step
    remaining: Int64  # [N] steps until the episode ends: 1 for its last one

    @classmethod
    def of(cls, steps: StepColumns[Any]) -> Neighbors:
        """Raises ValueError unless each trajectory has the steps 0, 1, 2, ... exactly once."""
        timeline = timeline_of(steps.trajectory, steps.step)
        order, length = timeline.order, timeline.length
        previous, following = np.full((2, len(order)), -1, dtype=np.int64)
        previous[order[1:]], following[order[:-1]] = order[:-1], order[1:]
        previous[order[timeline.begin]] = -1
        following[order[timeline.begin + length - 1]] = -1
        remaining = np.empty_like(order)
        remaining[order] = np.repeat(timeline.begin + length, length) - np.arange(len(order))
        return cls(previous, following, remaining)

    @property
    def last(self) -> Bool:
        """Whether each row is the last of its trajectory, [N]."""
        return self.following < 0

    def after(self, values: Float64, end: Float64 | float) -> Float64:
        """The value of the state after each step, [N]: that of the following row, or `end`."""
        return np.where(self.last, end, values[self.following])


def state_ids(rows: RowTable, steps: StepColumns[Any], cfg: AdvantageConfig) -> tuple[Int64, Int64]:
    """Numbers from 0 of the states before and after each step, [N] each.

    States of one task have the same number if their keys are equal, or with `cfg.similarity` if their texts
    are similar (`similar_groups`, each row's state before the one after it). Raises UserError if the groups
    do not hold the states after the steps.
    """
    keys = np.concatenate([rows.anchor, rows.next_anchor]).view(np.int64)
    if cfg.similarity is None:
        ids = group_ids(np.concatenate([steps.group, steps.group]), keys)
        return ids[: len(rows)], ids[len(rows) :]
    later = [step.next_observation for step in rows.steps]
    texts = [text for pair in zip(observations(rows, cfg), later, strict=True) for text in pair]
    ids = similar_groups(texts, np.repeat(rows.group, 2), cfg.similarity)
    return ids[::2], ids[1::2]


def history_groups(steps: StepColumns[Any], anchors: Int64, history: int) -> Iterator[tuple[Int64, Bool]]:
    """Groups of steps whose last k states agree, for k = 1, ..., `history` + 1; `anchors` are those of k = 1.

    Yields ids [N] and whether each row has k states behind it, its own included, and company in its group.
    """
    previous = Neighbors.of(steps).previous
    group = anchors
    for k in range(1, history + 2):
        if k > 1:  # the same state, and the rows before agree in k - 1 states
            before = np.where(previous < 0, -1, group[previous])
            group = group_ids(steps.group, np.stack([before, anchors], axis=1))
        yield group, (np.bincount(group)[group] >= 2) & (steps.step >= k - 1)


def distances(before: Int64, after: Int64, group: Int64, goal: int) -> Int64:
    """Fewest steps to `goal` of each state, [goal + 1]; `goal` is the number above all states.

    Steps [N] of the tasks `group` lead from the states `before` to the states `after`, or to `goal`. States
    without a way there are one step further off than the farthest of their task that has one.
    """
    distance = np.full(goal + 1, -1, dtype=np.int64)
    distance[goal] = hops = 0
    left = np.arange(len(before))  # steps from states whose distance is unknown
    while len(left):  # breadth first, backwards from the goal
        reached = before[left[distance[after[left]] == hops]]
        if not len(reached):
            break
        hops += 1
        distance[reached] = hops
        left = left[distance[before[left]] < 0]
    task = np.zeros(goal + 1, dtype=np.int64)
    task[after], task[before] = group, group
    farthest = np.zeros(int(group.max(initial=0)) + 1, dtype=np.int64)
    np.maximum.at(farthest, group, np.maximum(distance[before], distance[after]))
    return np.where(distance < 0, farthest[task] + 1, distance)
