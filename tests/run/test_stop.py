"""A run that is stopped saves, if there is something to save, on all ranks or on none."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from gigpo_mega.run import ranks
from gigpo_mega.run.run import Run


@pytest.mark.parametrize(("newest", "saves"), [(4, 0), (3, 1), (None, 1)])
def test_the_leader_says_whether_the_iteration_is_saved(
    newest: int | None, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank may see a shared folder as it was a moment ago: it waited in a collective alone."""

    def broadcast(box: list[Any]) -> None:
        box[:] = [newest, None]

    monkeypatch.setattr(ranks, "_waiting", lambda layout: nullcontext())
    monkeypatch.setattr(ranks.dist, "broadcast_object_list", broadcast)
    saved: list[int] = []
    made: Any = Run.__new__(Run)
    made.learner = SimpleNamespace(layout=SimpleNamespace(leader=False, world=2), iteration=4)
    made._checkpoints = SimpleNamespace(newest=lambda: 7 - (newest or 0), finish=lambda learner: None)
    made._save = lambda: saved.append(1)
    made._leader = made._engines = made._lock = None
    made._signals = SimpleNamespace(restore=lambda: None)
    made.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert len(saved) == saves
