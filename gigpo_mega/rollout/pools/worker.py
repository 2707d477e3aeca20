"""A process that holds some of the environments: `python -m gigpo_mega.rollout.pools.worker FD MARK NAME
JSON`.

Requests and replies are lists, pickled behind a 4-byte length, over the socket inherited as FD. When the
socket closes, the process closes its environments and ends with its process group, if need be a few seconds
later in the middle of a call: neither it nor what they have started outlives the run. MARK is shared memory
in which it says which environment is at work.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time

from envs.registry import lookup
from gigpo_mega.program import run_main
from gigpo_mega.rollout.pools.host import Host, Reply, Request

LENGTH = struct.Struct("!I")
FLUSH_SECONDS = 0.002  # an answer is held back for those of its batch after it unless this has passed
LEAVING_SECONDS = 2.0  # when the socket has closed: for the call at work, closing, and what is done at exit


class Mark:
    """The slot at work in a worker and since when, in memory that it shares with the pool."""

    SIZE = 16
    _NUMBER, _SECONDS = struct.Struct("q"), struct.Struct("d")

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, self.SIZE)

    def set(self, slot: int) -> None:
        """Say that a call for `slot` begins now."""
        self._memory[8:16] = self._SECONDS.pack(time.monotonic())  # first: who sees the slot sees its time
        self._memory[:8] = self._NUMBER.pack(slot + 1)

    def clear(self) -> None:
        """Say that no call is at work."""
        self._memory[:8] = self._NUMBER.pack(0)

    def read(self) -> tuple[int | None, float]:
        """The slot at work, None if there is none, and the seconds that its call has taken."""
        (number,) = self._NUMBER.unpack(self._memory[:8])
        (since,) = self._SECONDS.unpack(self._memory[8:16])
        return (number - 1 if number else None), time.monotonic() - since


class Worker:
    """Answers requests that come over `connection` by `host`."""

    def __init__(self, connection: socket.socket, host: Host) -> None:
        self._connection, self._host = connection, host

    def serve(self) -> None:
        """Work through batches of requests until the other side closes the socket."""
        while (batch := self._receive()) is not None:
            while select.select([self._connection], [], [], 0)[0]:
                more = self._receive()
                if more is None:
                    return
                batch += more
            self._work(batch)

    def _work(self, batch: list[Request]) -> None:
        replies: list[Reply] = []
        sent = time.monotonic()
        for request in batch:
            replies.append(self._host.answer(*request))
            if time.monotonic() - sent > FLUSH_SECONDS:
                self._send(replies)
                replies, sent = [], time.monotonic()
        self._send(replies)

    def _receive(self) -> list[Request] | None:
        header = self._read(LENGTH.size)
        if header is None:
            return None
        body = self._read(LENGTH.unpack(header)[0])
        return None if body is None else pickle.loads(body)  # from our own parent process

    def _read(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part = self._connection.recv(size - len(data))
            if not part:
                return None
            data += part
        return bytes(data)

    def _send(self, replies: list[Reply]) -> None:
        if replies:
            body = pickle.dumps(replies, protocol=pickle.HIGHEST_PROTOCOL)
            self._connection.sendall(LENGTH.pack(len(body)) + body)


def leave_with(connection: socket.socket) -> None:
    """End soon after the other side of `connection` has gone, whatever is being done."""
    closed = select.poll()
    closed.register(connection, select.POLLRDHUP)
    closed.poll()
    time.sleep(LEAVING_SECONDS)
    end_group()


def end_group() -> None:
    """Kill this process, and whatever it has started in its process group if that is its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Serve the environments that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    descriptor, mark, name, options = arguments
    left = threading.Event()
    atexit.register(lambda: end_group() if left.is_set() else None)  # the first, and so the last to be called
    with socket.socket(fileno=int(descriptor)) as connection:
        threading.Thread(target=leave_with, args=[connection], daemon=True).start()
        host = Host(Mark(int(mark)), lookup(name), json.loads(options))
        Worker(connection, host).serve()
        left.set()
        host.close()


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
