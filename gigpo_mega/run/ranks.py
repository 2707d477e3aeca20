"""How the ranks of a run act as one: the leader's results and errors reach all, signals stop all at once.

While the leader is busy the others wait outside of collectives that time out: it says every few seconds that
it is still there, so a rollout may take hours and a leader that is gone is noticed within two minutes.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from gigpo_mega.errors import UserError
from gigpo_mega.launch import leads_node
from gigpo_mega.learner.layout import Layout
from gigpo_mega.stack import Stack

P = ParamSpec("P")
T = TypeVar("T")

SIGN_SECONDS = 5.0  # between two signs of life of a busy leader


def agree(layout: Layout, stack: Stack, model: Path | None) -> None:
    """Raise UserError, on every rank, unless all ranks took the same stack, which torch follows, and `model`.

    torch does not if it was imported and had looked for GPUs before the stack was decided. The folder of a
    model of the hub has the name of its revision, and the caches of two nodes may hold different ones.
    """
    revision = model.name if model else ""
    taken: list[tuple[Stack, bool, str]] = [(stack, torch.cuda.is_available(), revision)] * layout.world
    if layout.world > 1:
        dist.all_gather_object(taken, taken[0])
    first, _, revision = taken[0]
    for rank, (other, usable, of) in enumerate(taken):
        if of != revision:
            raise UserError(
                f"model.path: rank 0 has {revision} of it and rank {rank} {of}; share HF_HOME between the "
                "nodes, or run hf download on each"
            )
        if other.name != first.name:
            raise UserError(
                f"rank 0 has the stack {first.name} ({first.reason}), rank {rank} {other.name} "
                f"({other.reason}); set up all nodes alike, or set stack to cpu"
            )
        if other.cuda != usable:
            raise UserError(
                f"rank {rank} has the stack {other.name} ({other.reason}), but its torch "
                f"{'has found GPUs' if usable else 'cannot use GPUs'}; set stack to cpu and start with "
                "CUDA_VISIBLE_DEVICES= to run without"
            )


def on_leader(layout: Layout, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `act(*args, **kwargs)` returns on the leader, on every rank; every rank raises what it raises."""
    with _waiting(layout):
        result, error = _attempt(layout, act, *args, **kwargs)
    box: list[Any] = [result, error]
    if layout.world > 1:
        dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def leader_only(layout: Layout, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """As `on_leader`, but the result stays with the leader; the other ranks get None."""
    with _waiting(layout):
        result, error = _attempt(layout, act, *args, **kwargs)
    box: list[Any] = [error]
    if layout.world > 1:
        dist.broadcast_object_list(box)
    if box[0] is not None:
        raise box[0]
    return result


def meet(layout: Layout) -> None:
    """Return when every rank has come here."""
    if layout.world > 1:
        dist.all_reduce(torch.zeros(1))  # on the host: NCCL's barrier would wait for the GPU, too


def on_nodes(layout: Layout, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
    """What `act(*args, **kwargs)` returns on the first rank of each node, on every rank; raises likewise."""
    found: list[Any] = [None] * layout.world
    mine = None
    if leads_node():
        try:
            mine = act(*args, **kwargs), None
        except Exception as error:
            mine = None, error
    if layout.world > 1:
        dist.all_gather_object(found, mine)
    else:
        found = [mine]
    answers = [answer for answer in found if answer is not None]
    for _, error in answers:
        if error is not None:
            raise error
    return [result for result, _ in answers]


def _attempt(
    layout: Layout, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> tuple[T | None, BaseException | None]:
    if not layout.leader:
        return None, None
    try:
        return act(*args, **kwargs), None
    except (Exception, KeyboardInterrupt) as error:
        if layout.world == 1:  # keeps its traceback
            raise
        return None, error


@contextmanager
def _waiting(layout: Layout) -> Iterator[None]:
    """A block in which the leader alone is busy; the others leave it when the leader does."""
    if layout.waiting_group is None:
        yield
    elif layout.leader:
        done = threading.Event()
        signs = threading.Thread(target=_give_signs, args=(layout.waiting_group, done), daemon=True)
        signs.start()
        try:
            yield
        finally:
            done.set()
            signs.join()
    else:
        yield
        busy = torch.ones(1, dtype=torch.uint8)
        while busy:
            dist.broadcast(busy, 0, group=layout.waiting_group)


def _give_signs(group: dist.ProcessGroup, done: threading.Event) -> None:
    """Send 1 every SIGN_SECONDS until `done`, then 0."""
    busy = True
    with contextlib.suppress(RuntimeError):  # a rank is gone: the collective that follows says so
        while busy:
            busy = not done.wait(SIGN_SECONDS)
            dist.broadcast(torch.tensor([busy], dtype=torch.uint8), 0, group=group)


class Signals:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, but only in `check` and `interruptible` blocks.

    Only the leader listens; the other ranks learn of it from its next result, so that all stop at the same
    point, between two updates. Takes effect at once and until `restore`; in the main thread only.
    """

    def __init__(self, layout: Layout) -> None:
        self._open, self._came = False, 0
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            handler = self._handle if layout.leader else signal.SIG_IGN
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, handler)

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt, with the signal as its argument, if one has come."""
        if self._came:
            raise KeyboardInterrupt(signal.Signals(self._came))

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal ends at once; one that came earlier ends it before it begins."""
        self._open = True
        try:
            self.check()
            yield
        finally:
            self._open = False

    def interrupting(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `act(*args, **kwargs)` returns; a signal ends it at once."""
        with self.interruptible():
            return act(*args, **kwargs)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came = number
        if self._open:
            self.check()
