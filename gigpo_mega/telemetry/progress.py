"""A bar per stage where someone watches, a line now and then where nobody does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar(Protocol):
    """What a stage reports to."""

    def advance(self, count: float = 1) -> None:
        """`count` more units are done."""
        ...


class _Silent:
    def advance(self, count: float = 1) -> None:
        del count


class _Lines:
    """A line every `interval` seconds, none for a stage that is over sooner."""

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
            line = _line(self._name, self._done, self._total, self._unit, now - self._start)
            self._stream.write(line + "\n")
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
        name: what is happening, e.g. "rollout".
        total: units to be done, None where nobody knows.
        unit: what is counted, e.g. "episodes".
        quiet: show nothing (every rank but the first).
        stream: where to; stderr by default. A terminal gets a bar, anything else lines.
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


def _line(name: str, done: float, total: int | None, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    if total is None:
        return f"{name}: {done:.0f} {unit}, {rate:.1f}/s"
    return f"{name}: {done:.0f}/{total} {unit}, {rate:.1f}/s, {(total - done) / max(rate, 1e-9):.0f} s left"
