"""Sokoban tasks: seeds drawn as in the reference, small ones for training, large ones held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from envs.base import EnvError, Task
from envs.sokoban.rooms import Room, Shape, room_of

_RANGES = {"train": (0, 2**16 - 1), "test": (2**16, 2**32 - 1)}
_MOST = 2**15


@dataclass(frozen=True, slots=True)
class SokobanTasks:
    """`train` and `test` distinct seeds, derived from `seed`, of rooms of one shape.

    Small rooms repeat: 198 of 512 held-out seeds give a room that one of 4,096 training seeds gives too. With
    `unseen` such seeds are skipped; without it the held-out seeds are drawn exactly as in the reference.
    """

    rows: int = 6
    columns: int = 6
    boxes: int = 1
    search_depth: int = 30
    train: int = 4096
    test: int = 512
    seed: int = 0
    unseen: bool = True

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise EnvError(
                    f"environment.tasks.{name}: {getattr(self, name)} is not in 1..{_MOST}; change it"
                )
        if self.seed < 0:
            raise EnvError(f"environment.tasks.seed: {self.seed} is below 0; use 0 or more")
        self.shape.check()

    @property
    def shape(self) -> Shape:
        """The shape of all rooms."""
        return Shape(self.rows, self.columns, self.boxes, self.search_depth)

    def tasks(self, split: str) -> list[Task]:
        """The tasks of `train` or `test`."""
        if split not in _RANGES:
            raise EnvError(f"environment.split: unknown split {split!r}; known: train, test")
        seeds = list(islice(self._draws("train"), self.train))
        if split == "test":
            known = {self._room(seed) for seed in seeds} if self.unseen else set[Room]()
            fresh = (seed for seed in self._draws("test") if self._room(seed) not in known)
            seeds = list(islice(fresh, self.test))
        return [Task(f"{split}/{seed}", "sokoban", f"{seed} {self.shape}") for seed in seeds]

    def _draws(self, split: str) -> Iterator[int]:
        """Distinct seeds in the order in which they are drawn."""
        draw, drawn = np.random.RandomState(self.seed), set[int]()
        while True:
            seed = int(draw.randint(*_RANGES[split], dtype=np.int64))
            if seed not in drawn:
                drawn.add(seed)
                yield seed

    def _room(self, seed: int) -> Room:
        return room_of(seed, self.shape)
