"""gigpo_mega.train with a fault: `python tests/faulty_train.py FAULT ITERATION ARGS...`.

FAULT is a point to be killed at (see POINTS), "stop" (SIGTERM while sampling), "skipped push",
"corrupted weights" or "never". The journal forgets nothing here: a test can feed one run's groups to another.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

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


def stop(*_: Any, **__: Any) -> None:
    """What a scheduler does first."""
    os.kill(os.getpid(), signal.SIGTERM)


def claim(self: host.Host, weights: Iterable[Any], version: int) -> None:
    """A push that never reaches the engine."""
    self._pushed = version


def corrupt(self: host.Host, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
    """A push that damages one tensor on the way."""
    damaged = ((n, t * 3 if n.endswith("layers.0.mlp.down_proj.weight") else t) for n, t in weights)
    self._pusher.push(damaged, version)
    self._pushed = version


FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    **{point: (owner, name, die) for point, (owner, name) in POINTS.items()},
    "stop": (session._Advance, "__call__", stop),
    "skipped push": (host.Host, "push", claim),
    "corrupted weights": (host.Host, "push", corrupt),
}


def arm(fault: str, iteration: int) -> None:
    """Inject `fault` once iteration `iteration` has begun."""
    original: Callable[..., Any] = train.iterate

    def iterate(cfg: Any, learner: Any, *rest: Any) -> None:
        if learner.iteration == iteration:
            setattr(*FAULTS[fault])
        original(cfg, learner, *rest)

    train.iterate = iterate


if __name__ == "__main__":
    host.Journal.forget = lambda *_, **__: None  # type: ignore[method-assign]
    if sys.argv[1] != "never":
        arm(sys.argv[1], int(sys.argv[2]))
    run_main(lambda: train.main(sys.argv[3:]))
