"""Environments for unit tests, importable by workers as `fake_environment:KIND`, `:FAULTY` and `:FLAKY`."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from envs.base import EnvError, EnvironmentKind, EnvUnavailable, Observation, Task, Transition


class FakeCounter:
    """Count to the number in the task's source by saying "up"; "down" is refused, "fail" loses."""

    def __init__(self, delay: float = 0.0) -> None:
        self._delay = delay
        self._goal = self._count = 0

    def reset(self, task: Task) -> Observation:
        if task.source == "missing":
            raise EnvError(f"no such game: {task.id}")
        self._goal, self._count = int(task.source), 0
        return self._observation()

    def step(self, action: str) -> Transition:
        time.sleep(self._delay)
        if action == "crash":
            os._exit(3)
        if action == "leave a child":
            if os.fork() == 0:
                time.sleep(1000)
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


def _seen(**wrong: Any) -> Observation:
    return Observation(**{"text": "here", **wrong})


def _moved(**wrong: Any) -> Transition:
    fine = {"observation": _seen(), "reward": 0.0, "done": False, "success": False, "valid": True}
    return Transition(**{**fine, **wrong})


def _chained() -> Transition:
    try:
        raise KeyError("gold")
    except KeyError as error:
        raise ConnectionResetError(104, "Connection reset by peer") from error


WRONG: dict[str, Callable[[], object]] = {
    "reward nan": lambda: _moved(reward=math.nan),
    "reward inf": lambda: _moved(reward=math.inf),
    "reward -inf of numpy": lambda: _moved(reward=np.float32("-inf")),
    "reward beyond float": lambda: _moved(reward=10**400),
    "reward too large": lambda: _moved(reward=1e200),
    "reward text": lambda: _moved(reward="10"),
    "reward None": lambda: _moved(reward=None),
    "reward two": lambda: _moved(reward=np.zeros(2)),
    "reward a list": lambda: _moved(reward=[1.0]),
    "reward complex": lambda: _moved(reward=1j),
    "done text": lambda: _moved(done="False"),
    "done None": lambda: _moved(done=None),
    "success nan": lambda: _moved(success=math.nan),
    "valid two": lambda: _moved(valid=np.array([True, False])),
    "observation text": lambda: _moved(observation="here"),
    "observation None": lambda: _moved(observation=None),
    "text bytes": lambda: _moved(observation=_seen(text=b"here")),
    "text None": lambda: _moved(observation=_seen(text=None)),
    "text array": lambda: _moved(observation=_seen(text=np.zeros(2))),
    "admissible text": lambda: _moved(observation=_seen(admissible="go")),
    "admissible numbers": lambda: _moved(observation=_seen(admissible=(1, 2))),
    "admissible None": lambda: _moved(observation=_seen(admissible=None)),
    "instruction None": lambda: _moved(observation=_seen(instruction=None)),
    "state number": lambda: _moved(observation=_seen(state=3)),
    "nothing": lambda: None,
    "tuple": lambda: ("here", 0.0, False, {}),
    "locked": threading.Lock,  # cannot be sent to another process
}
RAISED: dict[str, Callable[[], object]] = {
    "raises": _chained,
    "exits": lambda: sys.exit("no display"),
    "asserts": lambda: math.sqrt(-1),
}
FINE: dict[str, Callable[[], Transition]] = {
    "numpy": lambda: _moved(
        reward=np.float32(2.5), done=np.bool_(True), success=np.True_, valid=np.bool_(False),
        observation=_seen(text=np.str_("there"), admissible=[np.str_("go")]),
    ),
    "one element": lambda: _moved(reward=np.array([2.5]), done=np.array([True]), success=1, valid=0),
    "integers": lambda: _moved(reward=2, done=1, success=True, valid=True),
}  # fmt: skip


class FakeFaulty:
    """Does in its second step what the task's source names; a source `reset ...` does it at once."""

    def reset(self, task: Task) -> Observation:
        self._source, self._steps = task.source, 0
        at_once, _, name = task.source.partition(" ")
        return cast(Observation, (WRONG | RAISED)[name]()) if at_once == "reset" else _seen()

    def step(self, action: str) -> Transition:
        self._steps += 1
        return cast(Transition, (WRONG | RAISED | FINE)[self._source]()) if self._steps == 2 else _moved()


FAULTY = EnvironmentKind(environment=FakeFaulty, tasks=FakeTasks)


def _fail(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        subprocess.Popen(["sleep", "1000.25"])
        time.sleep(1000)
    raise (EnvUnavailable if kind == "unavailable" else EnvError)("the server is gone")


class FakeFlaky(FakeCounter):
    """FakeCounter with faults and a ledger, both in `folder`.

    A task's source is `GOAL WHEN KIND TIMES`: the first TIMES episodes of the task, in whatever process, kill
    their process, hang or raise, when they are reset or take their second step. The ledger has a line for
    each reset, end of an episode and closing: process, number of the environment and of its episode, task,
    event. An observation begins with the first three of them.
    """

    made = 0

    def __init__(self, folder: str, delay: float = 0.0) -> None:
        super().__init__(delay)
        FakeFlaky.made += 1
        self._folder, self._name, self._episode = Path(folder), f"{os.getpid()}-{FakeFlaky.made}", 0

    def reset(self, task: Task) -> Observation:
        goal, *fault = task.source.split()
        self._task, self._fault, self._steps = task, fault, 0
        self._episode += 1
        self._note("reset")
        self._maybe("reset")
        return super().reset(Task(task.id, task.kind, goal))

    def step(self, action: str) -> Transition:
        self._steps += 1
        self._maybe(f"step{self._steps}")
        transition = super().step(action)
        if transition.done:
            self._note("done")
        return transition

    def close(self) -> None:
        self._note("closed")
        raise RuntimeError("it has failed before")

    def _observation(self) -> Observation:
        return Observation(f"{self._name}-{self._episode} count {self._count}")

    def _maybe(self, now: str) -> None:
        when, kind, times = self._fault or ("never", "", 0)
        for number in range(int(times)) if when == now else ():
            try:
                (self._folder / f"{self._task.id}.{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            _fail(kind)

    def _note(self, event: str) -> None:
        with (self._folder / "ledger").open("a") as file:
            file.write(f"{self._name}-{self._episode} {self._task.id} {event}\n")


FLAKY = EnvironmentKind(environment=FakeFlaky, tasks=FakeTasks)
