"""An environment that writes to its standard output and starts a process: `noisy_environment:KIND`."""

from __future__ import annotations

import subprocess

from fake_environment import FakeCounter, FakeTasks

from envs.base import EnvironmentKind, Transition

print("welcome to the noisy environment")  # noqa: T201


class FakeNoise(FakeCounter):
    """Writes more than a pipe holds in an episode; its process ends when it is closed, if it ever is."""

    def __init__(self, seconds: str = "0") -> None:
        super().__init__()
        self._child = subprocess.Popen(["sleep", seconds])

    def step(self, action: str) -> Transition:
        """As the counter's."""
        print("x" * 20_000, flush=True)  # noqa: T201
        return super().step(action)

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()


KIND = EnvironmentKind(environment=FakeNoise, tasks=FakeTasks)
