"""The environment an agent plays: official text, the paper's reward, a step limit, an anchor state."""

from __future__ import annotations

from typing import Literal

from envs.alfworld.engine import NOTHING_HAPPENS, Play
from envs.alfworld.games import load_game
from envs.base import EnvironmentError, Observation, Task, Transition

SUCCESS_REWARD = 10.0  # the paper's scale (arXiv 2505.10978, section 5.1)
_INSTRUCTION = "Your task is to: "


class AlfworldEnvironment:
    """ALFWorld's text games, natively.

    An observation's text is the official feedback. With `anchor="state"` its `state` is what the agent knows
    of where it stands: place, inventory and the last answer other than "Nothing happens."; two states that
    differ in what the agent can see then never share an anchor through a failed command.
    """

    def __init__(self, max_steps: int = 50, anchor: Literal["observation", "state"] = "observation") -> None:
        if max_steps < 1:
            raise EnvironmentError(f"environment.max_steps: {max_steps} is below 1; use the paper's 50")
        if anchor not in ("observation", "state"):
            raise EnvironmentError(
                f"environment.anchor: unknown anchor {anchor!r}; known: observation, state"
            )
        self.max_steps = max_steps
        self.anchor = anchor
        self._play: Play | None = None
        self._done = True
        self._steps = 0
        self._place = self._held = "nothing"
        self._told = self._instruction = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """All commands the game accepts now, `help` included, as the official engine lists them."""
        return () if self._play is None else self._play.admissible

    @property
    def play(self) -> Play:
        """The running episode; raises EnvironmentError before the first reset."""
        if self._play is None:
            raise EnvironmentError("ALFWorld: no episode is running; call reset first")
        return self._play

    def reset(self, task: Task) -> Observation:
        """Starts the game at `task.source`; raises EnvironmentError where it cannot be read."""
        self._play = load_game(task.source).play()
        self._done, self._steps = False, 0
        self._place, self._held = "the middle of the room", "nothing"
        _, _, self._instruction = self._play.feedback.partition(_INSTRUCTION)
        self._instruction = self._instruction.strip()
        self._told = self._play.feedback
        return self._observation()

    def step(self, action: str) -> Transition:
        """Plays one command; an inadmissible one answers "Nothing happens." and is not `valid`."""
        play = self.play
        if self._done:
            raise EnvironmentError("ALFWorld: the episode is over; call reset")
        valid = play.step(action)
        if valid:
            self._remember(action.strip())
        self._steps += 1
        self._done = play.won or self._steps >= self.max_steps
        reward = SUCCESS_REWARD if play.won else 0.0
        return Transition(self._observation(), reward, self._done, play.won, valid)

    def _remember(self, command: str) -> None:
        if command.startswith("go to "):
            self._place = command.removeprefix("go to ")
        elif command.startswith("take "):
            self._held = command.removeprefix("take ").partition(" from ")[0]
        elif command.startswith("move "):
            self._held = "nothing"
        self._told = self.play.feedback

    def _observation(self) -> Observation:
        play = self.play
        admissible = tuple(command for command in play.admissible if command != "help")
        state = None
        if self.anchor == "state":
            state = f"at {self._place}; holding {self._held}; {self._told}"
        return Observation(play.feedback, admissible, self._instruction, state)


__all__ = ["NOTHING_HAPPENS", "SUCCESS_REWARD", "AlfworldEnvironment"]
