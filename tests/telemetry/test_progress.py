"""Progress for people, for logs and for silent ranks."""

from __future__ import annotations

import io

from gigpo_mega.telemetry.progress import stage


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_gets_a_line_when_the_interval_is_over():
    log = io.StringIO()
    with stage("rollout", 8, "episodes", stream=log, interval=0) as bar:
        bar.advance(2)
        bar.advance(6)
    first, last = log.getvalue().splitlines()
    assert first.startswith("rollout: 2/8 episodes, ")
    assert last.startswith("rollout: 8/8 episodes, ")
    assert last.endswith("/s, 0 s left")


def test_unknown_total_shows_count_and_rate():
    log = io.StringIO()
    with stage("update", None, "tokens", stream=log, interval=0) as bar:
        bar.advance(500)
    assert log.getvalue().startswith("update: 500 tokens, ")
    assert "left" not in log.getvalue()


def test_short_stage_leaves_a_log_alone():
    log = io.StringIO()
    with stage("push", 3, "buckets", stream=log, interval=60) as bar:
        bar.advance(3)
    assert log.getvalue() == ""


def test_quiet_rank_writes_nothing_even_to_a_terminal():
    terminal = FakeTerminal()
    with stage("rollout", 8, "episodes", quiet=True, stream=terminal) as bar:
        bar.advance(8)
    assert terminal.getvalue() == ""


def test_terminal_gets_a_bar_with_count_unit_and_rate():
    terminal = FakeTerminal()
    with stage("rollout", 8, "episodes", stream=terminal) as bar:
        bar.advance(8)
    shown = terminal.getvalue()
    assert "rollout" in shown
    assert "8/8" in shown
    assert "episodes" in shown
    assert "/s" in shown
