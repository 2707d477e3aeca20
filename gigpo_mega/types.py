"""The types that an iteration's data goes through: frozen, slotted, complete at construction.

An iteration's data flows one way: Step -> Trajectory -> Group -> RowTable -> Advantages -> Batch.
Shape letters: P prompt tokens, R response tokens of a step, N rows (one row = one step = one model call).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from envs.base import Task
from gigpo_mega.errors import UserError

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

EndedBy = Literal["success", "failure", "limit"]


@dataclass(frozen=True, slots=True)
class Step:
    """One model call: exactly the ids the engine saw and sampled, never re-tokenized."""

    prompt_ids: Int32  # [P]
    response_ids: Int32  # [R]
    logprobs: Float32  # [R] of the behavior policy, from the engine
    reward: float  # the environment's own, without any penalty
    valid: bool  # False: the answer was no action, or the environment refused it
    anchor: bytes  # 16 bytes, 128-bit key of the state the agent acted in
    versions: Int32  # [R] weight version that sampled each token
    observation: str = ""  # for people: traces and reports
    action: str = ""
    success: bool = False  # the step solved the task
    next_anchor: bytes = b""  # of the state after the step; empty: unknown
    next_observation: str = ""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One complete episode."""

    task: Task
    steps: tuple[Step, ...]
    score: float  # undiscounted sum of the environment's rewards
    success: bool
    ended_by: EndedBy


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task from the same initial state (GiGPO's episode-level group)."""

    task: Task
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class RowTable:
    """All steps of an iteration as columns, trajectory-major, in time order inside a trajectory."""

    group: Int64  # [N] index of the episode group
    trajectory: Int64  # [N] index of the trajectory, unique over all groups
    step: Int64  # [N] time step within the trajectory
    reward: Float64  # [N] environment reward of the step
    valid: Bool  # [N]
    anchor: UInt64  # [N, 2] 128-bit anchor key (hi, lo)
    steps: tuple[Step, ...]  # [N] token storage
    tasks: tuple[str, ...] = ()  # [G] id of each group's task, for messages

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def next_anchor(self) -> UInt64:
        """The anchor key of the state after each step, [N, 2]; made when it is asked for.

        Raises UserError if a step does not have one.
        """
        if not all(step.next_anchor for step in self.steps):
            raise UserError(
                "these steps do not tell which state they lead to (next_anchor), and advantage.estimator "
                "needs it; choose another"
            )
        return _keys([step.next_anchor for step in self.steps])

    @classmethod
    def from_groups(cls, groups: Sequence[Group]) -> RowTable:
        """Lay out `groups` as rows; trajectories without steps give no rows."""
        group: list[int] = []
        trajectory: list[int] = []
        step: list[int] = []
        rows: list[Step] = []
        index = 0
        for g, members in enumerate(groups):
            for member in members.trajectories:
                group += [g] * len(member.steps)
                trajectory += [index] * len(member.steps)
                step += range(len(member.steps))
                rows += member.steps
                index += 1
        return cls(
            group=np.array(group, dtype=np.int64),
            trajectory=np.array(trajectory, dtype=np.int64),
            step=np.array(step, dtype=np.int64),
            reward=np.array([row.reward for row in rows], dtype=np.float64),
            valid=np.array([row.valid for row in rows], dtype=np.bool_),
            anchor=_keys([row.anchor for row in rows]),
            steps=tuple(rows),
            tasks=tuple(g.task.id for g in groups),
        )


def _keys(anchors: Sequence[bytes]) -> UInt64:
    return np.frombuffer(b"".join(anchors), dtype=">u8").astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Advantages:
    """What `estimate` returns; `total` weighs every token of its row."""

    total: Float32  # [N]
    episode: Float32  # [N] A_E
    step: Float32  # [N] A_S, unweighted; zeros for estimators without a step level
    step_group: Int64  # [N] anchor-group id in first-appearance order; -1 without a step level
