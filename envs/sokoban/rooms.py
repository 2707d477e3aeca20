"""Rooms from seeds, identical to the reference's: a random walk digs the floor, reverse play moves the boxes.

The algorithm is gym-sokoban's (MIT license) as modified by verl-agent; both of its random streams are
reproduced draw for draw. If a seed gives no room, the reference continues with Python's hash of the seed,
which differs between processes; here the next seed depends on the seed alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np

from envs.base import EnvError

WALL, FLOOR, TARGET = 0, 1, 2
MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_TURN = 0.35  # probability that the walk changes its direction
_TRIES = 4
_MOST_STATES = 300_000
_UNTOUCHED, _PULLED = 4, 3  # the reference's marks of boxes; states with different marks are different states
_MASKS = (
    ((0, 0, 0), (1, 1, 1), (0, 0, 0)),
    ((0, 1, 0), (0, 1, 0), (0, 1, 0)),
    ((0, 0, 0), (1, 1, 0), (0, 1, 0)),
    ((0, 0, 0), (1, 1, 0), (1, 1, 0)),
    ((0, 0, 0), (0, 1, 1), (0, 1, 0)),
)
_DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))

Cell = tuple[int, int]  # row, column


@dataclass(frozen=True, slots=True)
class Room:
    """The positions of everything; `cells` holds WALL, FLOOR or TARGET by row and column."""

    cells: tuple[tuple[int, ...], ...]
    player: Cell
    boxes: frozenset[Cell]

    @property
    def targets(self) -> frozenset[Cell]:
        """The cells where the boxes belong."""
        return frozenset(
            (i, j) for i, row in enumerate(self.cells) for j, cell in enumerate(row) if cell == TARGET
        )

    @property
    def solved(self) -> bool:
        """Whether every box is on a target."""
        return self.boxes <= self.targets

    def moved(self, name: str) -> Room:
        """The room after the player moves, pushing a box if one is in the way; itself if it cannot move."""
        change = MOVES[name]
        place = _neighbor(self.player, change)
        if self.cells[place[0]][place[1]] == WALL:
            return self
        if place not in self.boxes:
            return Room(self.cells, place, self.boxes)
        behind = _neighbor(place, change)
        if self.cells[behind[0]][behind[1]] == WALL or behind in self.boxes:
            return self
        return Room(self.cells, place, self.boxes - {place} | {behind})


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters of rooms; a box is pulled from its target for at most `search_depth` - 2 moves."""

    rows: int = 6
    columns: int = 6
    boxes: int = 1
    search_depth: int = 30

    def __str__(self) -> str:
        return f"{self.rows} {self.columns} {self.boxes} {self.search_depth}"

    def check(self) -> None:
        """Raise EnvError if there are no such rooms."""
        limits = {"rows": (5, 30), "columns": (5, 30), "boxes": (1, 8), "search_depth": (3, 500)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise EnvError(
                    f"environment.tasks.{name}: {getattr(self, name)} is not in {least}..{most}; change it"
                )
        if self.boxes > (most := (self.rows - 2) * (self.columns - 2) // 4):
            raise EnvError(
                f"environment.tasks.boxes: {self.boxes} are too many for {self.rows} x {self.columns} cells; "
                f"use at most {most}"
            )


@lru_cache(maxsize=8192)
def room_of(seed: int, shape: Shape) -> Room:
    """The room of a seed."""
    while True:
        room = _Maker(seed, shape).room()
        if room is not None:
            return room
        seed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4])


class _Maker:
    """One attempt to make a room from one seed."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self.rng, self.places = Random(seed), np.random.RandomState(seed)
        self.rows, self.columns = shape.rows, shape.columns
        self.boxes, self.search_depth = shape.boxes, shape.search_depth

    def room(self) -> Room | None:
        """The room, or None if there is too little floor or no box can be pulled from its target."""
        for _ in range(_TRIES):
            level = self._dig()
            floor = _floor(level)
            if len(floor) <= self.boxes + 1:
                return None
            player = floor[self.places.randint(len(floor))]
            for _ in range(self.boxes):
                free = [cell for cell in _floor(level) if cell != player]
                row, column = free[self.places.randint(len(free))]
                level[row][column] = TARGET
            cells = tuple(map(tuple, level))
            reverse_play = _ReversePlay(Room(cells, player, frozenset()), self.search_depth)
            if reverse_play.displacement > 0:
                return self._walk(reverse_play.room, reverse_play.displacement)
        return None

    def _dig(self) -> list[list[int]]:
        rng, level = self.rng, [[WALL] * self.columns for _ in range(self.rows)]
        direction = rng.sample(_DIRECTIONS, 1)[0]
        row, column = rng.randint(1, self.rows - 1), rng.randint(1, self.columns - 1)
        for _ in range(int(1.7 * (self.rows + self.columns))):
            if rng.random() < _TURN:
                direction = rng.sample(_DIRECTIONS, 1)[0]
            row = max(min(row + direction[0], self.rows - 2), 1)
            column = max(min(column + direction[1], self.columns - 2), 1)
            mask = rng.sample(_MASKS, 1)[0]
            for i in range(3):
                for j in range(3):
                    inside = 0 < row - 1 + i < self.rows - 1 and 0 < column - 1 + j < self.columns - 1
                    if mask[i][j] and inside:
                        level[row - 1 + i][column - 1 + j] = FLOOR
        return level

    def _walk(self, room: Room, displacement: int) -> Room:
        """A few moves of the player, so that it does not always start next to a box."""
        rng, seen = self.rng, [room.player]
        if rng.random() > (0.8 if displacement == 1 else 0.5):
            return room
        for taken in range(1, 4):
            ways = [_neighbor(seen[-1], change) for change in MOVES.values()]
            ways = [way for way in ways if way not in seen and way not in room.boxes
                    and room.cells[way[0]][way[1]] != WALL]  # fmt: skip
            if not ways:
                break
            seen.append(rng.choice(ways))
            if taken == 3 or rng.random() > 0.5:
                break
        return Room(room.cells, seen[-1], room.boxes)


class _ReversePlay:
    """Pulls boxes from their targets, depth first, and keeps the room with the best score.

    The score is the sum of the boxes' distances from their targets times the number of changes between boxes;
    0 while a box or the player covers a target.
    """

    def __init__(self, start: Room, search_depth: int) -> None:
        self.room, self.displacement, self._best = start, 0, -1
        self._targets = sorted(start.targets)
        self._seen: set[tuple[Cell, frozenset[tuple[Cell, int]]]] = set()
        marks = frozenset((target, _UNTOUCHED) for target in self._targets)
        self._visit(start.player, marks, tuple(self._targets), 0, None, search_depth)

    def _visit(
        self,
        player: Cell,
        marks: frozenset[tuple[Cell, int]],
        places: tuple[Cell, ...],  # of the boxes, in the order of the targets they come from
        swaps: int,
        last: int | None,
        depth: int,
    ) -> None:
        depth -= 1
        if depth <= 0 or len(self._seen) >= _MOST_STATES or (player, marks) in self._seen:
            return
        self._seen.add((player, marks))
        self._score(player, places, swaps)
        occupied = dict(marks)
        for change in MOVES.values():
            place, behind = _neighbor(player, change), _neighbor(player, (-change[0], -change[1]))
            if self.room.cells[place[0]][place[1]] == WALL or place in occupied:
                continue
            if behind not in occupied:
                self._visit(place, marks, places, swaps, last, depth)
                continue
            box = places.index(behind)
            pulled = frozenset({**occupied, player: _PULLED}.items()) - {(behind, occupied[behind])}
            moved = (*places[:box], player, *places[box + 1 :])
            self._visit(place, pulled, moved, swaps + (box != last), box, depth)

    def _score(self, player: Cell, places: tuple[Cell, ...], swaps: int) -> None:
        displacement = sum(
            abs(a - c) + abs(b - d) for (a, b), (c, d) in zip(places, self._targets, strict=True)
        )
        covered = any(target == player or target in places for target in self._targets)
        score = 0 if covered else swaps * displacement
        if score > self._best:
            self._best, self.displacement = score, displacement
            self.room = Room(self.room.cells, player, frozenset(places))


def _floor(level: list[list[int]]) -> list[Cell]:
    return [(i, j) for i, row in enumerate(level) for j, cell in enumerate(row) if cell == FLOOR]


def _neighbor(cell: Cell, change: Cell) -> Cell:
    return cell[0] + change[0], cell[1] + change[1]
