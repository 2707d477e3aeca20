"""ScienceWorld's 30 tasks (Allen AI, Apache-2.0): a simulator in Java, one per slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.adapters import required
from envs.base import EnvError, EnvironmentKind, Observation, Task, Transition

scienceworld = required("scienceworld", "scienceworld")

_SPLITS = ("train", "dev", "test")
_REFUSED = ("No known action matches that input", "Ambiguous request")


@dataclass(frozen=True, slots=True)
class Variations:
    """The variations of the tasks `names`, or of all tasks; the splits are the benchmark's own."""

    names: Sequence[str] = ()

    def tasks(self, split: str) -> list[Task]:
        """The variations of `train`, `dev` or `test`."""
        if split not in _SPLITS:
            raise EnvError(f"environment.split: unknown split {split!r}; known: {', '.join(_SPLITS)}")
        simulator = _simulator(0)
        known = simulator.get_task_names()
        found: list[Task] = []
        for name in self.names or known:
            if name not in known:
                raise EnvError(
                    f"environment.tasks.names: no task {name!r}; known: {', '.join(known)}"
                )
            simulator.load(name, 0, "")
            numbers = getattr(simulator, f"get_variations_{split}")()
            found += [Task(f"{name}/{number}", name, f"{name} {number}") for number in numbers]
        simulator.close()
        return found


class ScienceWorldEnvironment:
    """A variation of a task, with the benchmark's `simplifications`; `max_steps` actions at most.

    The anchor state is what can be observed without acting: room and inventory. Rewards are shares of the
    full score; points for the initial look around are not rewarded. `list_actions` lists the possible
    actions, hundreds of commands, as admissible.
    """

    def __init__(
        self, max_steps: int = 100, simplifications: str = "easy", list_actions: bool = False
    ) -> None:
        self._simulator = _simulator(max_steps)
        self._simplifications, self._listed = simplifications, list_actions
        self._max_steps, self._steps, self._done = max_steps, 0, True
        self._closed = False

    def reset(self, task: Task) -> Observation:
        """Loads the variation `task.source`; raises EnvError if there is none."""
        name, _, number = task.source.rpartition(" ")
        try:
            self._simulator.load(name, int(number), self._simplifications)
        except ValueError as error:
            raise EnvError(f"ScienceWorld: {task.source!r}: {error}") from None
        text, info = self._simulator.reset()
        self._steps, self._done = 0, False
        return self._observation(text, info)

    def step(self, action: str) -> Transition:
        """Enters a command, cut to 200 ASCII characters, with white space collapsed."""
        if self._done:
            raise EnvError("ScienceWorld: the episode is over; call reset")
        command = " ".join(action.encode("ascii", "ignore").decode().split())[:200]
        text, reward, completed, info = self._simulator.step(command)
        self._steps += 1
        self._done = bool(completed or self._steps >= self._max_steps)
        valid = bool(command) and not text.startswith(_REFUSED)
        seen = self._observation(text, info)
        return Transition(seen, reward / 100, self._done, info["score"] >= 100, valid)

    def close(self) -> None:
        """Ends the simulator with its process of Java, once."""
        if not self._closed:
            self._done = self._closed = True
            self._simulator.close()

    def _observation(self, text: str, info: dict[str, Any]) -> Observation:
        listed = tuple(sorted(info["valid"])) if self._listed else ()
        return Observation(text, listed, info["taskDesc"], f"{info['look']}\n{info['inv']}")


def _simulator(max_steps: int) -> Any:
    try:
        return scienceworld.ScienceWorldEnv("", envStepLimit=max_steps + 1)
    except FileNotFoundError as error:
        raise EnvError(
            f"ScienceWorld: {error}; it needs Java (Debian: apt install default-jre)"
        ) from None


KIND = EnvironmentKind(ScienceWorldEnvironment, Variations)
