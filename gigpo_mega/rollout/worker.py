"""The process that holds a share of the environments: `python -m gigpo_mega.rollout.worker FD NAME JSON`.

Requests and replies are lists, pickled behind a 4-byte length, over the socket inherited as FD. The process
ends when the socket closes, so it can't outlive the run.
"""

from __future__ import annotations

import json
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any

from envs.base import Environment, EnvironmentError, EnvironmentKind, lookup
from gigpo_mega.errors import run_main

LENGTH = struct.Struct("!I")
FLUSH_SECONDS = 0.002  # answers wait at most this long for the next one of their batch

Request = tuple[int, str, Any]  # slot, "reset" or "step", its argument
Reply = tuple[int, bool, Any]  # slot, whether it went well, the result or what went wrong


class Worker:
    """Answers requests for the environments of one process, made when a slot is first used."""

    def __init__(self, connection: socket.socket, kind: EnvironmentKind, options: dict[str, Any]) -> None:
        self._connection = connection
        self._kind = kind
        self._options = options
        self._slots: dict[int, Environment] = {}

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
            replies.append(self._answer(request))
            if time.monotonic() - sent > FLUSH_SECONDS:
                self._send(replies)
                replies, sent = [], time.monotonic()
        self._send(replies)

    def _answer(self, request: Request) -> Reply:
        slot, method, argument = request
        try:
            if slot not in self._slots:
                self._slots[slot] = self._kind.environment(**self._options)
            return slot, True, getattr(self._slots[slot], method)(argument)
        except EnvironmentError as error:
            return slot, False, ("task", str(error))
        except Exception as error:
            return slot, False, ("bug", f"{error!r}\n{traceback.format_exc()}")

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


def main(arguments: list[str]) -> None:
    """Serve the environments that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    descriptor, name, options = arguments
    with socket.socket(fileno=int(descriptor)) as connection:
        Worker(connection, lookup(name), json.loads(options)).serve()


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
