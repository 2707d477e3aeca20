"""What tests of several folders do: wait, read a refusal, fill the disk, clone a batch."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from envs.base import EnvError
from gigpo_mega.batching import MicroBatch
from gigpo_mega.errors import UserError
from gigpo_mega.types import Bool, Float32


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until `condition` holds, which must be within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(call: Callable[[], object]) -> str:
    """What a user is told when `call` refuses: one line."""
    line = ""
    try:
        call()
    except (UserError, EnvError) as error:
        line = str(error)
    assert len(line.splitlines()) == 1
    return line


@contextmanager
def smallest_files(limit: int) -> Iterator[None]:
    """No file of this process or its children grows beyond `limit` bytes, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def whole(batch: MicroBatch) -> tuple[Float32, Bool]:
    """The target of `cloning_loss` if all tokens of `batch` are an action's."""
    count = int(batch.lengths.sum())
    return np.ones(count, np.float32), np.ones(count, np.bool_)
