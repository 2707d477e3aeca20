"""Progress of a stage: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar(Protocol):
    """Receives the progress of a stage."""

    def advance(self, count: float = 1) -> None:
        """Report that `count` more units are done."""
        ...


class _Silent:
    def advance(self, count: float = 1) -> None:
        del count


class _Lines:
    """Writes a line every `interval` seconds, none for a shorter stage."""

    def __init__(self, name: str, total: int | None, unit: str, stream: TextIO, interval: float) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._stream, self._interval = stream, interval
        self._done = 0.0
        self._start = self._last = time.monotonic()

    def advance(self, count: float = 1) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            rate = self._done / max(now - self._start, 1e-9)
            total = left = ""
            if self._total is not None:
                seconds = (self._total - self._done) / max(rate, 1e-9)
                total, left = f"/{self._total}", f", {seconds:.0f} s left"
            self._stream.write(f"{self._name}: {self._done:.0f}{total} {self._unit}, {rate:.1f}/s{left}\n")
            self._stream.flush()


class _Rich:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._start, self._done = time.monotonic(), 0.0

    def advance(self, count: float = 1) -> None:
        self._done += count
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        self._progress.update(self._task, advance=count, rate=f"{rate:.1f}/s")


@contextmanager
def stage(name: str, total: int | None, unit: str, *, quiet: bool = False, stream: TextIO | None = None,
          interval: float = 30.0) -> Iterator[Bar]:
    """Show the progress of one stage: its rate and the time left.

    Args:
        name: the stage, e.g. "rollout".
        total: units to be done, None if unknown.
        unit: what is counted, e.g. "episodes".
        quiet: show nothing (every rank but the first).
        stream: stderr by default. A terminal gets a bar, anything else gets lines.
        interval: seconds between lines.
    """
    out: TextIO = stream or sys.stderr
    if quiet:
        yield _Silent()
    elif not out.isatty():
        yield _Lines(name, total, unit, out, interval)
    else:
        columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
                   TextColumn("{task.fields[rate]}"), TimeRemainingColumn(compact=True))
        with Progress(*columns, console=Console(file=out), transient=True) as progress:
            yield _Rich(progress, progress.add_task(name, total=total, rate=""))
