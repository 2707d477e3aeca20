"""FakeCounter: an environment for unit tests, importable by worker processes as `fake_environment:KIND`."""

from __future__ import annotations

import os
import time

from envs.base import EnvironmentError, EnvironmentKind, Observation, Task, Transition


class FakeCounter:
    """Count to the number in the task's source by saying "up"; "down" is refused, "fail" loses."""

    def __init__(self, delay: float = 0.0) -> None:
        self._delay = delay
        self._goal = self._count = 0

    def reset(self, task: Task) -> Observation:
        if task.source == "missing":
            raise EnvironmentError(f"no such game: {task.id}")
        self._goal, self._count = int(task.source), 0
        return self._observation()

    def step(self, action: str) -> Transition:
        time.sleep(self._delay)
        if action == "crash":
            os._exit(3)
        if action == "raise":
            raise ZeroDivisionError("in the environment")
        self._count += action == "up"
        won = self._count == self._goal
        done = won or action == "fail"
        return Transition(self._observation(), float(10 * won), done, won, action in ("up", "fail"))

    def _observation(self) -> Observation:
        return Observation(f"count {self._count}", ("up", "down"), f"count to {self._goal}")


class FakeTasks:
    """No tasks: the tests name their own."""

    def tasks(self, split: str) -> list[Task]:
        del split
        return []


KIND = EnvironmentKind(environment=FakeCounter, tasks=FakeTasks)
