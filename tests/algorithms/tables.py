"""Row tables from plain episodes, and the equations of the paper in slow, plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from gigpo_mega.algorithms.advantage import BUILT_IN
from gigpo_mega.algorithms.anchors import anchor_key
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.types import Int32, Int64, RowTable, Step

CASES: list[Any] = [
    (name, preset)
    for name, built_in in BUILT_IN.items()
    for preset in ("paper", "reference")
    if preset == "paper" or built_in.official
]
"""Every estimator with every preset that it has."""


@dataclass(frozen=True)
class Episode:
    """One trajectory of task `group`: what happened in each of its steps."""

    group: int
    rewards: Sequence[float]
    states: Sequence[str]
    valid: Sequence[bool]
    final: str = "end"  # the state after the last step
    won: bool = False  # the last step solved the task


def episode(
    group: int, *rewards: float, states: str = "", valid: Sequence[bool] = (), final: str = "end",
    won: bool = False,
) -> Episode:  # fmt: skip
    """States are one letter each and default to `abc...`; steps are valid unless said otherwise."""
    letters = states or "".join(chr(ord("a") + step) for step in range(len(rewards)))
    assert len(letters) == len(rewards)
    return Episode(group, rewards, letters, valid or [True] * len(rewards), final, won)


def response(step: int) -> Int32:
    """The responses of an episode have 1, 2, 3, 1, 2, ... tokens."""
    return np.zeros(1 + step % 3, dtype=np.int32)


def table(episodes: Sequence[Episode]) -> RowTable:
    owner, steps = [], []
    for index, one in enumerate(episodes):
        later = [*one.states[1:], one.final]
        for t, (reward, state, valid) in enumerate(zip(one.rewards, one.states, one.valid, strict=True)):
            owner.append(index)
            key, after = (anchor_key(text, f"task{one.group}") for text in (state, later[t]))
            ids = response(t)
            steps.append(
                Step(
                    ids[:0], ids, ids.astype(np.float32), reward, valid, key, np.zeros_like(ids), state,
                    success=one.won and t == len(one.states) - 1,
                    next_anchor=after, next_observation=later[t],
                )
            )  # fmt: skip
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
    columns = {f.name: getattr(rows, f.name) for f in fields(rows)}
    taken: dict[str, Any] = {name: c[index] for name, c in columns.items() if isinstance(c, np.ndarray)}
    return replace(rows, **taken, steps=tuple(rows.steps[row] for row in index))


def equations(episodes: Sequence[Episode], cfg: AdvantageConfig) -> list[tuple[float, float, float]]:
    """(A, A_E, A_S) of every row by Eq. 3 to 8, the penalty being part of the reward."""
    returns = [discounted(rewards, cfg.gamma) for rewards in penalized(episodes, cfg)]
    members: dict[tuple[int, str], list[float]] = {}
    for one, values in zip(episodes, returns, strict=True):
        for state, value in zip(one.states, values, strict=True):
            members.setdefault((one.group, state), []).append(value)
    advantages = []
    for one, values, at_episode in zip(episodes, returns, episode_level(episodes, cfg), strict=True):
        for state, value in zip(one.states, values, strict=True):
            at_step = relative(value, members[one.group, state], cfg)
            advantages.append((at_episode + cfg.omega * at_step, at_episode, at_step))
    return advantages


def penalized(episodes: Sequence[Episode], cfg: AdvantageConfig) -> list[list[float]]:
    """The rewards of each episode, less the penalties."""
    return [
        [r - (0 if valid else cfg.invalid_penalty) for r, valid in zip(e.rewards, e.valid, strict=True)]
        for e in episodes
    ]


def discounted(rewards: Sequence[float], gamma: float) -> list[float]:
    """The discounted sum of the rewards from each step on."""
    return [math.fsum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]


def episode_level(episodes: Sequence[Episode], cfg: AdvantageConfig) -> list[float]:
    """A_E of every episode (Eq. 3)."""
    scores = [math.fsum(rewards) for rewards in penalized(episodes, cfg)]
    return [
        relative(score, [s for e, s in zip(episodes, scores, strict=True) if e.group == one.group], cfg)
        for one, score in zip(episodes, scores, strict=True)
    ]


def relative(value: float, group: Sequence[float], cfg: AdvantageConfig, ddof: int = 1) -> float:
    mean = group[0] if len(set(group)) == 1 else math.fsum(group) / len(group)
    if cfg.normalization == "mean":
        return value - mean
    variance = math.fsum((x - mean) ** 2 for x in group) / max(len(group) - ddof, 1)
    return (value - mean) / (math.sqrt(variance) + cfg.epsilon)
