"""A game of one step that any policy can learn: answer with a character whose code is a multiple of four."""

from __future__ import annotations

from collections.abc import Sequence

from envs.base import EnvironmentKind, Observation, Task, Transition


class ParityGame:
    """Chance wins about a quarter of the episodes."""

    def reset(self, task: Task) -> Observation:
        return Observation(f"take mug {task.id}", instruction="go")

    def step(self, action: str) -> Transition:
        won = bool(action) and ord(action[0]) % 4 == 0
        return Transition(Observation("done"), float(won), done=True, success=won, valid=True)


class ParityTasks:
    """Eight tasks, the same in every split."""

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(str(i), "parity", "") for i in range(8)]


KIND = EnvironmentKind(ParityGame, ParityTasks)
