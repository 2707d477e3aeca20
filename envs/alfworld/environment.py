"""The ALFWorld environment: official text, the paper's reward, a step limit, an anchor state."""

from __future__ import annotations

from typing import Literal

from envs.alfworld.engine import Play
from envs.alfworld.games import load_game
from envs.base import EnvError, Observation, Task, Transition

SUCCESS_REWARD = 10.0  # the paper's scale (arXiv 2505.10978, section 5.1)
_INSTRUCTION = "Your task is to: "


class AlfworldEnvironment:
    """ALFWorld's text games.

    An observation's text is the official feedback. With `anchor="state"` its `state` is what the agent knows
    about its situation: place, inventory and the last feedback other than "Nothing happens."; then two states
    that look different to the agent never share an anchor because of a failed command.
    """

    def __init__(self, max_steps: int = 50, anchor: Literal["observation", "state"] = "observation") -> None:
        if max_steps < 1:
            raise EnvError(f"environment.max_steps: {max_steps} is below 1; use the paper's 50")
        if anchor not in ("observation", "state"):
            raise EnvError(
                f"environment.options.anchor: unknown anchor {anchor!r}; known: observation, state"
            )
        self.max_steps = max_steps
        self.anchor = anchor
        self._play: Play | None = None
        self._done = True
        self._steps = 0
        self._place = self._held = "nothing"
        self._feedback = self._instruction = ""

    @property
    def play(self) -> Play:
        """The running episode; raises EnvError before the first reset."""
        if self._play is None:
            raise EnvError("ALFWorld: no episode is running; call reset first")
        return self._play

    def reset(self, task: Task) -> Observation:
        """Starts the game file `task.source`; raises EnvError if it cannot be read."""
        self._play = load_game(task.source).play()
        self._done, self._steps = False, 0
        self._place, self._held = "the middle of the room", "nothing"
        _, _, self._instruction = self._play.feedback.partition(_INSTRUCTION)
        self._instruction = self._instruction.strip()
        self._feedback = self._play.feedback
        return self._observation()

    def step(self, action: str) -> Transition:
        """Plays one command; an inadmissible one gets "Nothing happens." and is not `valid`."""
        play = self.play
        if self._done:
            raise EnvError("ALFWorld: the episode is over; call reset")
        valid = play.step(action)
        if valid:
            verb, _, rest = action.strip().partition(" ")
            if verb == "go":
                self._place = rest.removeprefix("to ")
            elif verb == "take":
                self._held = rest.partition(" from ")[0]
            elif verb == "move":
                self._held = "nothing"
            self._feedback = play.feedback
        self._steps += 1
        self._done = play.won or self._steps >= self.max_steps
        reward = SUCCESS_REWARD if play.won else 0.0
        return Transition(self._observation(), reward, self._done, play.won, valid)

    def _observation(self) -> Observation:
        play = self.play
        admissible = tuple(command for command in play.admissible if command != "help")
        state = None
        if self.anchor == "state":
            state = f"at {self._place}; holding {self._held}; {self._feedback}"
        return Observation(play.feedback, admissible, self._instruction, state)
