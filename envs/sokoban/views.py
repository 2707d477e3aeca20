"""The room as text: the reference's grid, the same with less blank space, and two ways to say it in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from envs.sokoban.rooms import FLOOR, MOVES, TARGET, WALL, Cell, Room


def render(room: Room, view: str) -> str:
    """The room as one of VIEWS shows it."""
    return VIEWS[view](room)


def _grid(room: Room) -> list[list[str]]:
    return [[_symbol(room, (i, j)) for j in range(len(row))] for i, row in enumerate(room.cells)]


def _symbol(room: Room, cell: Cell) -> str:
    kind = room.cells[cell[0]][cell[1]]
    if cell == room.player:
        return "S" if kind == TARGET else "P"
    if cell in room.boxes:
        return "√" if kind == TARGET else "X"
    return {WALL: "#", FLOOR: "_", TARGET: "O"}[kind]


def _symbols(room: Room) -> str:
    return "\n".join("".join(f" {symbol} \t" for symbol in row) for row in _grid(room))


def _rows(room: Room) -> str:
    return "\n".join(" ".join(row) for row in _grid(room))


def _text(room: Room) -> str:
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


def _places(cells: Iterable[Cell]) -> str:
    return "; ".join(f"row {i + 1} column {j + 1}" for i, j in sorted(cells)) or "none"


def _relative(room: Room) -> str:
    """Every line as long as in any other room, so that a small policy finds its words by their place."""
    return "\n".join(_seen(room))


def _seen(room: Room) -> Iterator[str]:
    for box in sorted(room.boxes):
        nearest = min(room.targets, key=lambda target: (_distance(box, target), target))
        yield f"target from box: {_way(box, nearest)}"
        yield f"box walls: {_walls(room, box)}"
        yield f"your walls: {_walls(room, room.player)}"
        yield f"box from you: {_way(room.player, box)}"


def _distance(start: Cell, end: Cell) -> int:
    return abs(end[0] - start[0]) + abs(end[1] - start[1])


def _way(start: Cell, end: Cell) -> str:
    down, right = end[0] - start[0], end[1] - start[1]
    vertical = f"up {-down}" if down < 0 else f"down {down}"
    horizontal = f"left {-right}" if right < 0 else f"right {right}"
    return f"{vertical} {horizontal}"


def _walls(room: Room, cell: Cell) -> str:
    """Which of the four cells beside it are walls."""
    return " ".join(
        name if room.cells[cell[0] + down][cell[1] + right] == WALL else "free"
        for name, (down, right) in MOVES.items()
    )


VIEWS: Mapping[str, Callable[[Room], str]] = {
    "symbols": _symbols,
    "rows": _rows,
    "text": _text,
    "relative": _relative,
}
