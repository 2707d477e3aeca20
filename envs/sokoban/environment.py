"""The Sokoban environment: push every box onto a target; gym-sokoban's rewards."""

from __future__ import annotations

import re
from typing import Literal

from envs.base import EnvError, Observation, Task, Transition
from envs.sokoban.rooms import MOVES, Room, Shape, room_of
from envs.sokoban.views import VIEWS, render

STEP_REWARD, ON_TARGET_REWARD, FINISHED_REWARD = -0.1, 1.0, 10.0
STILL = "still"  # allowed by the reference, and does nothing
_SOURCE = re.compile(r"[0-9]{1,10}( [0-9]{1,3}){4}")
_INSTRUCTION = "Push every box onto a target."


class SokobanEnvironment:
    """The room of a task's seed and shape.

    `view` symbols shows the reference's grid with tabs between the cells, rows the same symbols with single
    spaces, text the positions in words, relative the positions relative to each other; in any view `state` is
    the whole room. The reward is -0.1 per action, 1 for a box pushed onto a target, -1 for a box pushed off
    it, and 10 more for the last box.
    """

    def __init__(
        self, max_steps: int = 15, view: Literal["symbols", "rows", "text", "relative"] = "symbols"
    ) -> None:
        if max_steps < 1:
            raise EnvError(f"environment.max_steps: {max_steps} is below 1; set it to 1 or more")
        if view not in VIEWS:
            raise EnvError(
                f"environment.options.view: unknown view {view!r}; known: {', '.join(VIEWS)}"
            )
        self.max_steps, self.view = max_steps, view
        self._room: Room | None = None
        self._done, self._steps = True, 0

    @property
    def room(self) -> Room:
        """The present room; raises EnvError before the first reset."""
        if self._room is None:
            raise EnvError("Sokoban: no episode is running; call reset first")
        return self._room

    def reset(self, task: Task) -> Observation:
        """Makes the room of `task.source`; raises EnvError if that is not a seed with a shape."""
        source = task.source
        if not _SOURCE.fullmatch(source) or int(source.split()[0]) >= 2**32:
            raise EnvError(
                f"Sokoban: task.source {source[:40]!r} is not `seed rows columns boxes search_depth`"
            )
        seed, *sizes = map(int, source.split())
        shape = Shape(*sizes)
        shape.check()
        self._room = room_of(seed, shape)
        self._done, self._steps = False, 0
        return self._observation()

    def step(self, action: str) -> Transition:
        """Moves up, down, left or right; others than these and `still` have no effect and are not `valid`."""
        before, name = self.room, action.strip().lower()
        if self._done:
            raise EnvError("Sokoban: the episode is over; call reset")
        self._steps += 1
        self._room = after = before.moved(name) if name in MOVES else before
        gained = len(after.boxes & after.targets) - len(before.boxes & before.targets)
        reward = STEP_REWARD + ON_TARGET_REWARD * gained + (FINISHED_REWARD if after.solved else 0.0)
        self._done = after.solved or self._steps >= self.max_steps
        return Transition(
            self._observation(), reward, self._done, after.solved, name in MOVES or name == STILL
        )

    def _observation(self) -> Observation:
        state = render(self.room, "rows") if self.view == "relative" else None
        return Observation(render(self.room, self.view), tuple(MOVES), _INSTRUCTION, state)
