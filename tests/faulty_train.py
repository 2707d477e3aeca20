"""gigpo_mega.train, killed by SIGKILL at a stated point: `python tests/faulty_train.py POINT ITERATION
ARGS...`.

POINT "never" runs through. The journal forgets nothing here, so that a test can feed one run's groups to
another.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from gigpo_mega import host, journal, train
from gigpo_mega.errors import run_main
from gigpo_mega.learner import checkpoint, update
from gigpo_mega.rollout import session
from gigpo_mega.weights import push

POINTS: dict[str, tuple[Any, str]] = {
    "rollout": (session._Advance, "__call__"),  # an episode has finished, others are in flight
    "journal": (journal.os, "replace"),  # groups written, not yet published
    "update": (update.OptimizerParamScheduler, "step"),  # the first of two optimizer updates is done
    "checkpoint": (checkpoint.Checkpoints, "_publish"),  # written, not yet renamed
    "push": (push.WeightPusher, "verify"),  # the engine has the weights, nobody has checked
}


def die(*_: Any, **__: Any) -> None:
    """What a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, iteration: int) -> None:
    """Kill the process at `point`, once iteration `iteration` has begun."""
    original: Callable[..., Any] = train.iterate

    def iterate(cfg: Any, learner: Any, *rest: Any) -> None:
        if learner.iteration == iteration:
            setattr(*POINTS[point], die)
        original(cfg, learner, *rest)

    train.iterate = iterate


if __name__ == "__main__":
    host.Journal.forget = lambda *_, **__: None  # type: ignore[method-assign]
    if sys.argv[1] != "never":
        arm(sys.argv[1], int(sys.argv[2]))
    run_main(lambda: train.main(sys.argv[3:]))
