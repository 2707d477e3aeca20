"""The room as text: the reference's grid, the same with less white space, and two descriptions in words."""

from __future__ import annotations

from envs.sokoban.rooms import FLOOR, MOVES, TARGET, WALL, Cell, Room

VIEWS = ("symbols", "rows", "text", "relative")
_SYMBOLS = {WALL: "#", FLOOR: "_", TARGET: "O"}


def render(room: Room, view: str) -> str:
    """The room in one of VIEWS."""
    match view:
        case "symbols":
            return "\n".join("".join(f" {symbol} \t" for symbol in row) for row in _grid(room))
        case "rows":
            return "\n".join(" ".join(row) for row in _grid(room))
        case "relative":
            return _relative_positions(room)
        case _:
            return _absolute_positions(room)


def _grid(room: Room) -> list[list[str]]:
    grid = [[_SYMBOLS[cell] for cell in row] for row in room.cells]
    for cells, free, on_target in ((room.boxes, "X", "√"), ({room.player}, "P", "S")):
        for i, j in cells:
            grid[i][j] = on_target if room.cells[i][j] == TARGET else free
    return grid


def _absolute_positions(room: Room) -> str:
    rows, columns = len(room.cells), len(room.cells[0])
    inside = ((i, j) for i in range(1, rows - 1) for j in range(1, columns - 1))
    named = {
        "You": {room.player},
        "Boxes": room.boxes,
        "Targets": room.targets,
        "Walls inside": {(i, j) for i, j in inside if room.cells[i][j] == WALL},
    }
    lines = [f"The room has {rows} rows and {columns} columns, walls around it."]
    for name, cells in named.items():
        places = "; ".join(f"row {i + 1} column {j + 1}" for i, j in sorted(cells))
        lines.append(f"{name}: {places or 'none'}")
    return "\n".join(lines)


def _relative_positions(room: Room) -> str:
    """Every line has the same length in any room, so that a small policy finds words by their position."""
    lines: list[str] = []
    for i, j in sorted(room.boxes):
        nearest = min(room.targets, key=lambda target: (abs(target[0] - i) + abs(target[1] - j), target))
        lines.append(f"target from box: {_way((i, j), nearest)}")
        lines.append(f"box walls: {_walls(room, (i, j))}")
        lines.append(f"your walls: {_walls(room, room.player)}")
        lines.append(f"box from you: {_way(room.player, (i, j))}")
    return "\n".join(lines)


def _way(start: Cell, end: Cell) -> str:
    down, right = end[0] - start[0], end[1] - start[1]
    vertical = f"up {-down}" if down < 0 else f"down {down}"
    horizontal = f"left {-right}" if right < 0 else f"right {right}"
    return f"{vertical} {horizontal}"


def _walls(room: Room, cell: Cell) -> str:
    """Which of the four neighboring cells are walls."""
    return " ".join(
        name if room.cells[cell[0] + down][cell[1] + right] == WALL else "free"
        for name, (down, right) in MOVES.items()
    )
