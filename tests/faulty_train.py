"""gigpo_mega.train with a fault: `python tests/faulty_train.py FAULT ITERATION ARGS...`.

FAULT is a point to be killed at (see POINTS), "stop" (SIGTERM while sampling), "interrupt" (the same with
SIGINT), "stop in update", "kill engine" (the first, while sampling), "kill rank" (one of its ranks),
"kill engine in push", "skipped push", "corrupted weights", "driver" (from the start there seem to be one of
NVIDIA and torch's CUDA build), "no learner" (it cannot be made, which shows when a server has started beside
it) or "never". The journal forgets nothing here: a test can feed one run's groups to another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import torch

from gigpo_mega import train
from gigpo_mega.errors import UserError
from gigpo_mega.learner import checkpoint, learner
from gigpo_mega.program import run_main
from gigpo_mega.rollout import session
from gigpo_mega.run import run
from gigpo_mega.run.engines import NodeEngines
from gigpo_mega.run.run import Run
from gigpo_mega.stack import Machine
from gigpo_mega.storage import files
from gigpo_mega.storage.journal import Journal
from gigpo_mega.types import Group
from gigpo_mega.weights.push import Pushed, WeightPush
from gigpo_mega.weights.transport.checksums import Checksums

UpdateStats = learner.UpdateStats
ADVANCE = session._Advance.__call__
KEEP = Journal.keep
PASSING = Checksums.passing

POINTS: dict[str, tuple[Any, str]] = {
    "journal": (files.os, "replace"),  # a group is written, not yet published
    "update": (learner, "UpdateStats"),  # the first of two optimizer updates is done
    "checkpoint": (checkpoint.Checkpoints, "_publish"),  # written, not yet renamed
    "push": (WeightPush, "verify"),  # the engine has the weights, unverified
}


def die(*_: Any, **__: Any) -> None:
    """What a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop(*_: Any, **__: Any) -> None:
    """What a scheduler does first."""
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt(*_: Any, **__: Any) -> None:
    """What a user's Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


def servers() -> list[psutil.Process]:
    """The SGLang servers of this run, in the order in which they were launched."""
    family = psutil.Process().children(recursive=True)
    return sorted(
        (p for p in family if "--served-model-name" in p.cmdline()), key=lambda process: process.pid
    )


def fail_beside_a_server(*_: Any, **__: Any) -> None:
    """What a checkpoint with a wrong tensor does, as soon as a server listens; within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for server in servers():
            words = server.cmdline()
            host, port = (words[words.index(flag) + 1] for flag in ("--host", "--port"))
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
                raise UserError(f"no learner; process {server.pid} listens")
        time.sleep(0.1)
    raise UserError("no learner, and no server listens")


def kill_engine(*_: Any, **__: Any) -> None:
    """What the kernel does when memory runs out: the first server's processes are gone, once."""
    session._Advance.__call__ = ADVANCE
    (first, *_rest) = servers()
    for process in [*first.children(recursive=True), first]:
        process.kill()


def kill_rank(*_: Any, **__: Any) -> None:
    """The same for one of the first server's tensor-parallel ranks: it hangs, as the others wait for that."""
    session._Advance.__call__ = ADVANCE
    (rank,) = [p for p in servers()[0].children(recursive=True) if "scheduler_TP1" in " ".join(p.cmdline())]
    rank.kill()


def kill_engine_in_push(self: Checksums, weights: Iterable[Any]) -> Iterator[Any]:
    """The first server is gone, once, when half of the tensors are on their way."""
    Checksums.passing = PASSING
    for number, named in enumerate(PASSING(self, weights)):
        if number == 12:
            kill_engine()
        yield named


def die_after_a_group(self: Journal, iteration: int, number: int, group: Group) -> None:
    """A power cut as soon as one group is kept."""
    KEEP(self, iteration, number, group)
    die()


def stop_in_update(*columns: Any) -> learner.UpdateStats:
    """SIGTERM once, after the first of an iteration's optimizer updates."""
    learner.UpdateStats = UpdateStats  # type: ignore[misc]
    stop()
    return UpdateStats(*columns)


def lose(self: NodeEngines, weights: Iterable[Any], version: int) -> Pushed:
    """A push that never reaches the engine."""
    return Pushed(0, 1.0, 1.0)


def corrupt(self: NodeEngines, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> Pushed:
    """A push of a policy of which one tensor is damaged: the engine holds what it was sent."""
    damaged = ((n, t * 3 if n.endswith("layers.0.mlp.down_proj.weight") else t) for n, t in weights)
    return self._pushing().push(damaged, version)


FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    **{point: (owner, name, die) for point, (owner, name) in POINTS.items()},
    "group": (Journal, "keep", die_after_a_group),
    "stop": (session._Advance, "__call__", stop),
    "interrupt": (session._Advance, "__call__", interrupt),
    "kill engine": (session._Advance, "__call__", kill_engine),
    "kill rank": (session._Advance, "__call__", kill_rank),
    "kill engine in push": (Checksums, "passing", kill_engine_in_push),
    "stop in update": (learner, "UpdateStats", stop_in_update),
    "skipped push": (NodeEngines, "push", lose),
    "corrupted weights": (NodeEngines, "push", corrupt),
}


def arm(fault: str, iteration: int) -> None:
    """Inject `fault` once iteration `iteration` has begun."""
    original = Run.iterations

    def iterations(self: Run) -> Iterator[int]:
        for now in original(self):
            if now == iteration:
                setattr(*FAULTS[fault])
            yield now

    Run.iterations = iterations


if __name__ == "__main__":
    Journal.forget = lambda *_, **__: None  # type: ignore[method-assign]
    if sys.argv[1] == "driver":
        Machine.has_driver, Machine.torch_cuda = lambda self: True, lambda self: "13.0"
    elif sys.argv[1] == "no learner":
        run._learner = fail_beside_a_server  # type: ignore[assignment]
    elif sys.argv[1] != "never":
        arm(sys.argv[1], int(sys.argv[2]))
    run_main(lambda: train.main(sys.argv[3:]))
