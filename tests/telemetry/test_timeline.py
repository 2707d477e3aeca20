"""Timelines: lanes for what overlaps, and nothing if none is kept."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gigpo_mega.telemetry.timeline import Span, Timeline, write


def test_spans_that_overlap_lie_in_lanes_of_their_track(tmp_path: Path) -> None:
    spans = [
        Span("learner", "rollout", 100.0, 5.0),
        Span("engine 0", "a", 100.5, 2.0),
        Span("engine 0", "b", 101.0, 0.5),
        Span("engine 0", "c", 101.5, 3.0),  # when b has ended
        Span("engine 0", "d", 102.0, 0.25),
    ]
    write(tmp_path / "timeline" / "0.json.gz", spans)
    with gzip.open(tmp_path / "timeline" / "0.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["learner", "engine 0"]
    lanes = {e["name"]: (e["pid"], e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"}
    assert lanes == {
        "rollout": (0, 0, 0, 5_000_000),
        "a": (1, 0, 500_000, 2_000_000),
        "b": (1, 1, 1_000_000, 500_000),
        "c": (1, 1, 1_500_000, 3_000_000),
        "d": (1, 2, 2_000_000, 250_000),
    }


def test_nothing_is_kept_unless_it_is_on() -> None:
    off, on = Timeline(), Timeline(on=True, place="worker 1: ")
    for timeline in (off, on):
        with pytest.raises(ValueError), timeline.span("track", "failed"):  # noqa: PT011
            raise ValueError
    assert off.take() == []
    (span,) = on.take()
    assert (span.track, span.name) == ("track", "failed")
    assert on.take() == []
