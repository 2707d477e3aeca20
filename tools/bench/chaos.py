"""ALFWorld that fails at random and keeps a ledger: `--environment.name tools.bench.chaos:KIND`."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal
from uuid import uuid4

from envs.alfworld import AlfworldEnvironment, task_source
from envs.alfworld.dialogue import DIALOGUES
from envs.base import EnvError, EnvironmentKind, EnvUnavailable, Observation, Task, Transition


class ChaoticAlfworld(AlfworldEnvironment):
    """Each reset and step fails with probability `hazard`: an error, a hang or the end of the process.

    Every observation ends with the name of its episode, and every event of an episode is a line in a file of
    the folder `ledger`.
    """

    def __init__(self, ledger: str, hazard: float, max_steps: int, anchor: Literal["state"]) -> None:
        super().__init__(max_steps, anchor)
        self._hazard, self._random, self._episode = hazard, Random(uuid4().int), ""
        self._ledger = Path(ledger) / f"{os.getpid()}-{uuid4().hex[:8]}"

    def reset(self, task: Task) -> Observation:
        """Start an episode with a name of its own."""
        self._episode = uuid4().hex[:12]
        self._note("reset")
        if self._random.random() < self._hazard:
            self._note("unavailable")
            raise EnvUnavailable("chaos: nobody answers")
        return self._named(super().reset(task))

    def step(self, action: str) -> Transition:
        """Take one action, if nothing fails."""
        self._fail()
        transition = super().step(action)
        if transition.done:
            self._note("done")
        return replace(transition, observation=self._named(transition.observation))

    def _fail(self) -> None:
        draw = self._random.random() / self._hazard if self._hazard else 1.0
        if draw < 0.2:
            self._note("hang")
            time.sleep(10_000)
        if draw < 0.4:
            self._note("exit")
            os._exit(9)
        if draw < 1.0:
            self._note("error")
            raise EnvError("chaos: the simulator is in a bad mood")

    def _named(self, seen: Observation) -> Observation:
        return replace(seen, text=f"{seen.text} [{self._episode}]")

    def _note(self, event: str) -> None:
        with self._ledger.open("a") as file:
            file.write(f"{self._episode} {event}\n")


KIND = EnvironmentKind(ChaoticAlfworld, task_source, dialogues=DIALOGUES)
