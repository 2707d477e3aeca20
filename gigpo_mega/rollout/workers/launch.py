"""Starts the rollout workers of a run, and ends them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from gigpo_mega.config import Config
from gigpo_mega.launch import node_address
from gigpo_mega.rollout.workers.actors import ActorWorker
from gigpo_mega.rollout.workers.client import RemoteGroupPlayer, Worker
from gigpo_mega.rollout.workers.process import ProcessWorker
from gigpo_mega.rollout.workers.wire import Setup


@contextmanager
def remote_player(cfg: Config, model: Path, urls: Sequence[str]) -> Iterator[RemoteGroupPlayer]:
    """Plays in `rollout.workers`, each with its share of the episodes in flight and of the environments.

    Raises UserError if one cannot be started.
    """
    kind = ActorWorker if cfg.rollout.pool == "ray" else ProcessWorker
    share, host, secret = share_of(cfg), node_address(), secrets.token_bytes(32)
    with ExitStack() as stack:
        started: list[Worker] = []
        for number in range(cfg.rollout.workers):
            setup = Setup(number, share, model.absolute(), tuple(urls), host, secret)
            started.append(worker := kind(setup))
            stack.callback(worker.close)
        for worker in started:  # a mistake is told before anything is played
            worker.address()
        yield RemoteGroupPlayer(started, share.rollout.concurrency, urls, cfg.rollout.retries)


def share_of(cfg: Config) -> Config:
    """`cfg` for one of its workers, which holds its environments in processes of its own."""
    count = cfg.rollout.workers
    concurrency = math.ceil(cfg.rollout.concurrency / count)
    return replace(
        cfg,
        rollout=replace(cfg.rollout, workers=1, pool="process", concurrency=concurrency),
        environment=replace(cfg.environment, workers=math.ceil(cfg.environment.workers / count)),
    )
