"""What the leader and a rollout worker say to each other, pickled behind its length."""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import Task
from gigpo_mega.config import Config
from gigpo_mega.rollout.engines.fleet import Served
from gigpo_mega.rollout.group_player import Counts, Failure, Terms
from gigpo_mega.telemetry.timeline import Span
from gigpo_mega.types import Trajectory

LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is made of; it listens at `host`, and who connects begins with `secret`."""

    number: int
    cfg: Config
    model: Path
    urls: tuple[str, ...]
    host: str
    secret: bytes


@dataclass(frozen=True, slots=True)
class Serving:
    """To a worker, whenever it changes: where each engine listens, and why it is lost, if it is; whether all
    are paused. `number` grows."""

    number: int
    urls: tuple[str, ...]
    lost: tuple[str | None, ...]
    held: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """To a worker, first: how groups are played, and which engines serve."""

    terms: Terms
    serving: Serving


@dataclass(frozen=True, slots=True)
class Play:
    """To a worker: a group."""

    number: int
    task: Task


@dataclass(frozen=True, slots=True)
class GiveUp:
    """To a worker: the episodes of a group end after the step they are in."""

    number: int


@dataclass(frozen=True, slots=True)
class End:
    """To a worker, last."""


@dataclass(frozen=True, slots=True)
class Spans:
    """From a worker, after each group and before it ends a collection: what it did when."""

    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Played:
    """From a worker: a group's episodes, or why one failed too often."""

    number: int
    episodes: Sequence[Trajectory | None]
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Failed:
    """From a worker: what ends the collection."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Progress:
    """From a worker, now and then and after each group."""

    counts: Counts
    engines: tuple[Served, ...]
    heard: int  # number of the latest `Serving`


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message; raises IncompleteReadError or ConnectionError when there is none any more."""
    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return pickle.loads(await reader.readexactly(size))  # of whom knows the secret


def send(writer: asyncio.StreamWriter, message: Any) -> None:
    """Queue `message`."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    writer.write(LENGTH.pack(len(body)))
    writer.write(body)
