"""A rollout worker: `python -m gigpo_mega.rollout.workers.server FD`, its `Setup` pickled on standard input.

It writes the port that it listens on to the pipe FD, and ends when its standard input closes. A connection is
a collection: what is under way when it closes is given up.
"""

from __future__ import annotations

import asyncio
import hmac
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from urllib.parse import urlsplit

from envs.base import EnvError
from gigpo_mega.errors import UserError, first
from gigpo_mega.program import run_main
from gigpo_mega.rollout.engines.fleet import Served
from gigpo_mega.rollout.group_player import Attempt, LocalGroupPlayer
from gigpo_mega.rollout.local import local_player
from gigpo_mega.rollout.pools.base import PoolError
from gigpo_mega.rollout.workers import wire

REPORT_SECONDS = 0.25  # between two reports of progress


class WorkerServer:
    """Plays groups by `player`, of one collection after another, for who knows `secret`."""

    def __init__(self, player: LocalGroupPlayer, secret: bytes) -> None:
        self._player, self._secret = player, secret
        self._one = asyncio.Lock()
        self._heard = 0

    async def collection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        try:
            if not hmac.compare_digest(await reader.readexactly(len(self._secret)), self._secret):
                return
            async with self._one:  # one that was cut off ends first
                await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the leader has given this collection up
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin: wire.Begin = await wire.receive(reader)
        self._let_serve(begin.serving)
        try:
            async with self._player.opened(begin.terms, lambda: None), asyncio.TaskGroup() as running:
                reporting = running.create_task(self._report(writer))
                try:
                    await self._listen(reader, writer, running)
                finally:
                    reporting.cancel()
            self._tell(writer)
            wire.send(writer, wire.End())
        except (Exception, BaseExceptionGroup) as failure:
            wire.send(writer, self._progress())  # which engines are lost
            wire.send(writer, wire.Failed(_told(first(failure))))
        await writer.drain()

    async def _listen(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, running: asyncio.TaskGroup
    ) -> None:
        """Begin and give up groups, until the leader has no more."""
        attempts: dict[int, Attempt] = {}
        while not isinstance(message := await wire.receive(reader), wire.End):
            if isinstance(message, wire.Play):
                attempts[message.number] = attempt = Attempt(message.number, message.task)
                played = running.create_task(self._play(attempt, writer))
                played.add_done_callback(lambda _, number=attempt.number: attempts.pop(number))
            elif isinstance(message, wire.GiveUp) and message.number in attempts:
                attempts[message.number].end()  # harmless if it has been played
            elif isinstance(message, wire.Serving):
                self._let_serve(message)

    def _let_serve(self, serving: wire.Serving) -> None:
        self._heard = serving.number
        self._player.hold(serving.held)
        self._player.readmit(serving.urls)
        for number, reason in enumerate(serving.lost):
            if reason is not None:
                self._player.lose(number, reason)

    async def _play(self, attempt: Attempt, writer: asyncio.StreamWriter) -> None:
        episodes = await self._player.play(attempt)
        self._tell(writer)
        wire.send(writer, wire.Played(attempt.number, episodes, attempt.failure))
        await writer.drain()

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            wire.send(writer, self._progress())

    def _tell(self, writer: asyncio.StreamWriter) -> None:
        """How it stands, and what ran since this was told last."""
        wire.send(writer, self._progress())
        if spans := self._player.spans():
            wire.send(writer, wire.Spans(spans))

    def _progress(self) -> wire.Progress:
        engines = [e.since(Served()) for e in self._player.engines]
        return wire.Progress(self._player.counts, tuple(engines), self._heard)


def _told(error: BaseException) -> Exception:
    """`error` as the leader is to know it, a bug with its traceback; raised here if the leader has gone."""
    if isinstance(error, (asyncio.IncompleteReadError, ConnectionError)) or not isinstance(error, Exception):
        raise error
    if not isinstance(error, (UserError, EnvError, PoolError)):
        error.add_note("in a rollout worker:\n" + "".join(traceback.format_exception(error)))
    return error


def player_of(setup: wire.Setup) -> AbstractContextManager[LocalGroupPlayer]:
    """What a worker plays with; it prefers the engines of its own node."""
    near = [number for number, url in enumerate(setup.urls) if urlsplit(url).hostname == setup.host]
    return local_player(setup.cfg, setup.model, setup.urls, near, f"worker {setup.number}: ")


async def serve(player: LocalGroupPlayer, setup: wire.Setup, on_port: Callable[[int], None]) -> None:
    """Listen until cancelled."""
    server = WorkerServer(player, setup.secret)
    async with await asyncio.start_server(server.collection, setup.host, 0) as listening:
        on_port(listening.sockets[0].getsockname()[1])
        await listening.serve_forever()


def main(descriptor: str) -> None:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader decides when to stop
    setup: wire.Setup = pickle.load(sys.stdin.buffer)  # from our own parent process
    with player_of(setup) as player:
        asyncio.run(_until_left(player, setup, int(descriptor)))


async def _until_left(player: LocalGroupPlayer, setup: wire.Setup, descriptor: int) -> None:
    serving = asyncio.create_task(serve(player, setup, partial(_tell, descriptor)))
    leaving = asyncio.create_task(asyncio.to_thread(sys.stdin.buffer.read))
    await asyncio.wait([serving, leaving], return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


def _tell(descriptor: int, port: int) -> None:
    with open(descriptor, "w") as pipe:
        pipe.write(str(port))


if __name__ == "__main__":
    run_main(lambda: main(*sys.argv[1:]))
