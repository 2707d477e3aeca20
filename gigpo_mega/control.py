"""How the ranks of a run act as one: the leader's results and errors are shared, signals stop all at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import torch.distributed as dist

from gigpo_mega.learner.parallel import Layout

T = TypeVar("T")


def shared(layout: Layout, produce: Callable[[], T]) -> T:
    """What `produce` returns on the leader, on every rank; where it raises, every rank raises the same."""
    box: list[Any] = [None, None]
    if layout.leader:
        try:
            box[0] = produce()
        except (Exception, KeyboardInterrupt) as error:
            if layout.world == 1:
                raise
            box[1] = error
    if layout.world > 1:
        dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


class Stop:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, but only inside `run`.

    Only the leader listens; the other ranks learn of it from the next `shared` result, so that all stop at
    the same point, between two updates.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._open = self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handler = self._handle if self._layout.leader else signal.SIG_IGN
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, wait: Callable[[], T]) -> T:
        """What `wait` returns; a signal ends it at once, one that came before ends it before it begins."""
        self._open = True
        try:
            if self._asked:
                raise KeyboardInterrupt
            return wait()
        finally:
            self._open = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._open:
            raise KeyboardInterrupt
