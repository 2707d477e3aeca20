"""The environment: push every box onto a target; rewards as gym-sokoban gives them."""

from __future__ import annotations

import re
from typing import Literal

from envs.base import EnvironmentError, Observation, Task, Transition
from envs.sokoban.rooms import FLOOR, MOVES, TARGET, WALL, Cell, Room, Shape, room_of

STEP_REWARD, ON_TARGET_REWARD, FINISHED_REWARD = -0.1, 1.0, 10.0
STILL = "still"  # allowed by the reference, and does nothing
_SOURCE = re.compile(r"[0-9]{1,10}( [0-9]{1,3}){4}")
_VIEWS = ("symbols", "rows", "text")
_INSTRUCTION = "Push every box onto a target."


class SokobanEnvironment:
    """The room that a task's seed and shape give.

    `view` symbols shows the reference's grid with tabs between the cells, rows the same symbols with single
    spaces, text says in words where things are. Every action costs 0.1; a box that comes to stand on a target
    gives 1, one that leaves it takes 1, the last one gives 10 more.
    """

    def __init__(self, max_steps: int = 15, view: Literal["symbols", "rows", "text"] = "symbols") -> None:
        if max_steps < 1:
            raise EnvironmentError(f"environment.options.max_steps: {max_steps} is below 1")
        if view not in _VIEWS:
            raise EnvironmentError(
                f"environment.options.view: unknown view {view!r}; known: {', '.join(_VIEWS)}"
            )
        self.max_steps, self.view = max_steps, view
        self._room: Room | None = None
        self._done, self._steps = True, 0

    @property
    def room(self) -> Room:
        """Where everything is now; raises EnvironmentError before the first reset."""
        if self._room is None:
            raise EnvironmentError("Sokoban: no episode is running; call reset first")
        return self._room

    def reset(self, task: Task) -> Observation:
        """Makes the room of `task.source`; raises EnvironmentError where that is no seed with a shape."""
        self._room = _room(task.source)
        self._done, self._steps = False, 0
        return self._observation()

    def step(self, action: str) -> Transition:
        """Moves up, down, left or right; anything but these and `still` does nothing and is not `valid`."""
        before, name = self.room, action.strip().lower()
        if self._done:
            raise EnvironmentError("Sokoban: the episode is over; call reset")
        self._steps += 1
        self._room = after = before.moved(name) if name in MOVES else before
        gained = len(after.boxes & after.targets) - len(before.boxes & before.targets)
        reward = STEP_REWARD + ON_TARGET_REWARD * gained + (FINISHED_REWARD if after.solved else 0.0)
        self._done = after.solved or self._steps >= self.max_steps
        return Transition(
            self._observation(), reward, self._done, after.solved, name in MOVES or name == STILL
        )

    def _observation(self) -> Observation:
        return Observation(render(self.room, self.view), tuple(MOVES), _INSTRUCTION)


def _room(source: str) -> Room:
    if not _SOURCE.fullmatch(source) or int(source.split()[0]) >= 2**32:
        raise EnvironmentError(
            f"Sokoban: task.source {source[:40]!r} is not `seed rows columns boxes search_depth`"
        )
    seed, *shape = map(int, source.split())
    checked = Shape(*shape)
    checked.check()
    return room_of(seed, checked)


def render(room: Room, view: str) -> str:
    """The room as one of the views shows it."""
    if view == "text":
        return _told(room)
    symbols = [[_symbol(room, (i, j)) for j in range(len(row))] for i, row in enumerate(room.cells)]
    if view == "rows":
        return "\n".join(" ".join(row) for row in symbols)
    return "\n".join("".join(f" {symbol} \t" for symbol in row) for row in symbols)


def _symbol(room: Room, cell: Cell) -> str:
    kind = room.cells[cell[0]][cell[1]]
    if cell == room.player:
        return "S" if kind == TARGET else "P"
    if cell in room.boxes:
        return "√" if kind == TARGET else "X"
    return {WALL: "#", FLOOR: "_", TARGET: "O"}[kind]


def _told(room: Room) -> str:
    walls = frozenset(
        (i, j)
        for i, row in enumerate(room.cells)
        for j, cell in enumerate(row)
        if cell == WALL and 0 < i < len(room.cells) - 1 and 0 < j < len(row) - 1
    )
    named = (
        ("You", frozenset((room.player,))),
        ("Boxes", room.boxes),
        ("Targets", room.targets),
        ("Walls inside", walls),
    )
    size = f"The room has {len(room.cells)} rows and {len(room.cells[0])} columns, walls around it."
    return "\n".join([size, *(f"{name}: {_places(cells)}" for name, cells in named)])


def _places(cells: frozenset[Cell]) -> str:
    return "; ".join(f"row {i + 1} column {j + 1}" for i, j in sorted(cells)) or "none"
