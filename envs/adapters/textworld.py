"""TextWorld games (Microsoft, MIT): those of tw-make, and interactive fiction that jericho runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.adapters import required
from envs.base import EnvError, EnvironmentKind, Observation, Task, Transition

textworld = required("textworld", "textworld")

_SUFFIXES = {".z3", ".z4", ".z5", ".z6", ".z7", ".z8", ".ulx"}
_STATUS_LINE = re.compile(r"\s*\n>[^\n]*\s*$")  # the interpreter's prompt with its status line
# Commands to the interpreter: some write files, some end or block the game.
_NOT_FOR_AGENTS = {"quit", "q", "restart", "save", "restore", "script", "transcript", "recording", "replay"}
_LONGEST = 197  # characters of a command; the interpreters' own input buffers are about as long


@dataclass(frozen=True, slots=True)
class GameFiles:
    """The games in `data`/<split>, by name; each file must stay in one folder with its .json."""

    data: str

    def tasks(self, split: str) -> list[Task]:
        """A task per game file; raises EnvError if there is none."""
        folder = Path(self.data) / split
        files = sorted(file for file in folder.rglob("*") if file.suffix in _SUFFIXES)
        if not files:
            raise EnvError(
                f"environment.tasks.data: no game (.z8, .ulx) in {folder}; tw-make makes one"
            )
        return [Task(f"{split}/{file.stem}", "textworld", str(file)) for file in files]


class TextWorldEnvironment:
    """The game file that a task names; `max_steps` actions at most.

    The first observation is the room, the later ones are the game's answers. The anchor state is the room's
    description with the inventory. The reward is the increase of the score, as a share of the highest score.
    """

    def __init__(self, max_steps: int = 50) -> None:
        self._max_steps, self._steps = max_steps, 0
        self._game: Any = None
        self._path, self._score, self._done = "", 0.0, True
        self._seen = Observation("")

    def reset(self, task: Task) -> Observation:
        """Starts the game; raises EnvError if its file cannot be played."""
        if task.source != self._path:
            self._load(Path(task.source))
        state = self._game.reset()
        self._steps, self._score, self._done = 0, 0.0, False
        return self._observation(state, state.description or _answer(state))

    def step(self, action: str) -> Transition:
        """Types a command, cut to 197 printable ASCII characters; `save`, `quit` and such are not typed."""
        if self._done:
            raise EnvError("TextWorld: the episode is over; call reset")
        command = " ".join("".join(c if " " <= c <= "~" else " " for c in action).split())[:_LONGEST]
        self._steps += 1
        if not command or command.lower().split()[0] in _NOT_FOR_AGENTS:
            self._done = self._steps >= self._max_steps
            return Transition(self._seen, 0.0, self._done, False, valid=False)
        valid = command in self._seen.admissible
        state, score, done = self._game.step(command)
        reward = (score - self._score) / (state.max_score or 1)
        self._score, self._done = score, bool(done or self._steps >= self._max_steps)
        seen = self._observation(state, _answer(state))
        return Transition(seen, float(reward), self._done, bool(state.won), valid)

    def close(self) -> None:
        """Ends the game with its interpreter, if one is loaded."""
        game, self._game = self._game, None
        self._path, self._done = "", True
        if game is not None:
            game.close()

    def _load(self, file: Path) -> None:
        header = file.read_bytes()[:64] if file.is_file() else b""
        known = header[:4] == b"Glul" if file.suffix == ".ulx" else bool(header) and 1 <= header[0] <= 8
        if len(header) < 64 or not known:  # the interpreter would end the process
            raise EnvError(f"TextWorld: {file} is not a game of the Z-machine or of Glulx; tw-make makes one")
        self.close()
        asked = ("admissible_commands", "description", "inventory", "won", "lost", "max_score", "objective")
        try:
            self._game = textworld.start(str(file), textworld.EnvInfos(**dict.fromkeys(asked, True)))
        except Exception as error:  # the library raises nothing narrower
            raise EnvError(f"TextWorld: {file} cannot be played: {error}") from None
        self._path = str(file)

    def _observation(self, state: Any, text: str) -> Observation:
        admissible = tuple(sorted(state.admissible_commands or ()))
        standing = f"{state.description}\n{state.inventory}" if state.description else None
        self._seen = Observation(text.strip(), admissible, state.objective or "", standing)
        return self._seen


def _answer(state: Any) -> str:
    return _STATUS_LINE.sub("", state.feedback or "")


KIND = EnvironmentKind(TextWorldEnvironment, GameFiles)
