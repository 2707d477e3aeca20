"""What ran when in an iteration, for a trace viewer: Chrome's trace event format, which Perfetto reads."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gigpo_mega.storage.files import replacing


@dataclass(frozen=True, slots=True)
class Span:
    """Something that ran on `track` from `start`, in seconds since the epoch, for some seconds."""

    track: str
    name: str
    start: float
    seconds: float


class Timeline:
    """Collects what runs in this process, if it is `on`; names of tracks of its own begin with `place`."""

    def __init__(self, on: bool = False, place: str = "") -> None:
        self.place = place
        self._on = on
        self._spans: list[Span] = []

    @contextmanager
    def span(self, track: str, name: str) -> Iterator[None]:
        """The block runs on `track`, also if it fails."""
        start, begin = time.time(), time.perf_counter()
        try:
            yield
        finally:
            if self._on:
                self._spans.append(Span(track, name, start, time.perf_counter() - begin))

    def take(self) -> list[Span]:
        """What ran since the last call."""
        spans, self._spans = self._spans, []
        return spans


def write(path: Path, spans: Sequence[Span]) -> None:
    """Write `spans` as `path`, compressed: a process per track, a thread for each of those that overlap.

    Raises OSError if the disk refuses.
    """
    content = json.dumps({"traceEvents": list(_events(spans)), "displayTimeUnit": "ms"})
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        file.write(gzip.compress(content.encode(), compresslevel=6, mtime=0))


def _events(spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    """Microseconds since the first one; tracks in the order in which they are first named."""
    origin = min((span.start for span in spans), default=0.0)
    for number, track in enumerate(dict.fromkeys(span.track for span in spans)):
        yield {"ph": "M", "name": "process_name", "pid": number, "args": {"name": track}}
        yield {"ph": "M", "name": "process_sort_index", "pid": number, "args": {"sort_index": number}}
        ends: list[float] = []  # of the last span in each lane
        for span in sorted((s for s in spans if s.track == track), key=lambda s: s.start):
            lane = next((lane for lane, end in enumerate(ends) if end <= span.start), len(ends))
            ends[lane : lane + 1] = [span.start + span.seconds]
            yield {
                "ph": "X",
                "name": span.name,
                "pid": number,
                "tid": lane,
                "ts": round(1e6 * (span.start - origin)),
                "dur": round(1e6 * span.seconds),
            }
