"""One gloo device for all process groups.

torch makes a device for each group, with a thread that wakes a hundred times a second; megatron asks for some
thirty groups.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from torch._C._distributed_c10d import ProcessGroupGloo, Store
from torch.distributed import distributed_c10d

_TRIED = SpecifierSet(">=2.11,<2.15")  # versions of torch; what is replaced here is private


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Gloo groups that are made in this block share a device, unless torch is of a version never tried."""
    c10d: Any = distributed_c10d
    original = c10d.ProcessGroupGloo

    class GlooOnOneDevice(original):
        def __init__(self, store: Store, rank: int, size: int, timeout: timedelta, **further: Any) -> None:
            options = original._Options()
            options._devices, options._timeout = _devices(), timeout
            for name, value in further.items():  # from 2.14 on enable_reconfigure
                setattr(options, name, value)
            super().__init__(store, rank, size, options)

    if _TRIED.contains(torch.__version__, prereleases=True):
        c10d.ProcessGroupGloo = GlooOnOneDevice
    try:
        yield
    finally:
        c10d.ProcessGroupGloo = original


@functools.cache
def _devices() -> list[Any]:
    """This process's devices, as torch would choose them for each group again."""
    interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
    if interfaces:
        return [ProcessGroupGloo.create_device(interface=name) for name in interfaces.split(",")]
    return [ProcessGroupGloo.create_default_device()]
