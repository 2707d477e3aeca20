"""Row tables from plain episodes, and the equations of the paper in slow, plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from gigpo_mega.algorithms.grouping import anchor_key
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Int64, RowTable, Step


@dataclass(frozen=True)
class Episode:
    """One trajectory of task `group`: what happened in each of its steps."""

    group: int
    rewards: Sequence[float]
    states: Sequence[str]
    valid: Sequence[bool]


def episode(group: int, *rewards: float, states: str = "", valid: Sequence[bool] = ()) -> Episode:
    """States are one letter each and default to `abc...`; steps are valid unless said otherwise."""
    letters = states or "".join(chr(ord("a") + step) for step in range(len(rewards)))
    assert len(letters) == len(rewards)
    return Episode(group, rewards, letters, valid or [True] * len(rewards))


def table(episodes: Sequence[Episode]) -> RowTable:
    ids = np.zeros(0, dtype=np.int32)
    owner, steps = [], []
    for index, one in enumerate(episodes):
        for reward, state, valid in zip(one.rewards, one.states, one.valid, strict=True):
            owner.append(index)
            key = anchor_key(state, f"task{one.group}")
            steps.append(Step(ids, ids, ids.astype(np.float32), reward, valid, key, 0, state))
    trajectory = np.array(owner, dtype=np.int64)
    keys = np.frombuffer(b"".join(step.anchor for step in steps), dtype=">u8").astype(np.uint64)
    return RowTable(
        group=np.array([episodes[index].group for index in owner], dtype=np.int64),
        trajectory=trajectory,
        step=np.array([step for one in episodes for step in range(len(one.rewards))], dtype=np.int64),
        reward=np.array([step.reward for step in steps]),
        valid=np.array([step.valid for step in steps], dtype=np.bool_),
        anchor=keys.reshape(-1, 2),
        steps=tuple(steps),
    )


def take(rows: RowTable, index: Int64) -> RowTable:
    """The rows `index`, in that order."""
    columns = {f.name: getattr(rows, f.name)[index] for f in fields(rows) if f.name != "steps"}
    return RowTable(**columns, steps=tuple(rows.steps[row] for row in index))


def equations(episodes: Sequence[Episode], cfg: AdvantageConfig) -> list[tuple[float, float, float]]:
    """(A, A_E, A_S) of every row by Eq. 3 to 8, the penalty being part of the reward."""
    rewards = [
        [r - (0 if valid else cfg.invalid_penalty) for r, valid in zip(e.rewards, e.valid, strict=True)]
        for e in episodes
    ]
    returns = [
        [math.fsum(cfg.gamma**k * r for k, r in enumerate(of_one[t:])) for t in range(len(of_one))]
        for of_one in rewards
    ]
    advantages = []
    for i, one in enumerate(episodes):
        score_group = [math.fsum(rewards[j]) for j, e in enumerate(episodes) if e.group == one.group]
        at_episode = relative(math.fsum(rewards[i]), score_group, cfg)
        for t, state in enumerate(one.states):
            step_group = [
                value
                for e, of_one in zip(episodes, returns, strict=True)
                for s, value in zip(e.states, of_one, strict=True)
                if e.group == one.group and s == state
            ]
            at_step = relative(returns[i][t], step_group, cfg)
            advantages.append((at_episode + cfg.omega * at_step, at_episode, at_step))
    return advantages


def relative(value: float, group: Sequence[float], cfg: AdvantageConfig) -> float:
    mean = math.fsum(group) / len(group)
    if cfg.normalization == "mean":
        return value - mean
    variance = math.fsum((x - mean) ** 2 for x in group) / max(len(group) - 1, 1)
    return (value - mean) / (math.sqrt(variance) + cfg.epsilon)
