"""How fast bytes could travel at best, measured in this process: the ceiling beside which a push stands."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryFile

import torch

_GIB = 2**30
_COPIED, _SENT, _WRITTEN = 64 << 20, 64 << 20, 16 << 20  # bytes; each takes a CPU less than 0.1 s


def copying() -> float:
    """GiB/s of a copy in memory: the GPU's if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)  # written once, so that its pages exist

    def copy() -> None:
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()

    copy()
    return _rate(_COPIED, copy)


def sending() -> float:
    """GiB/s of one TCP connection over the loopback interface."""
    data, buffer = memoryview(bytes(_SENT)), memoryview(bytearray(1 << 20))
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()

    def receive() -> None:
        left = _SENT
        while left:
            left -= far.recv_into(buffer)

    def send() -> None:
        thread = threading.Thread(target=receive)
        thread.start()
        near.sendall(data)
        thread.join()

    with closing(near), closing(far):
        return _rate(_SENT, send)


def writing(folder: Path) -> float:
    """GiB/s of a file that is written to `folder` and flushed to its disk; raises OSError."""
    data = os.urandom(1 << 20) * (_WRITTEN >> 20)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:

        def write() -> None:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

        return _rate(_WRITTEN, write)


def _rate(size: int, act: Callable[[], None]) -> float:
    start = time.perf_counter()
    act()
    return size / _GIB / (time.perf_counter() - start)
