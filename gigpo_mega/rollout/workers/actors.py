"""Rollout workers as actors of a Ray cluster: a node each, as far as there are nodes."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import replace

from gigpo_mega.rollout.cluster import Actor, own_address
from gigpo_mega.rollout.workers.wire import Setup


class ActorServer:
    """What an actor runs: a worker's server, in a thread of its own."""

    def __init__(self, setup: Setup) -> None:
        self._setup = replace(setup, host=own_address())
        self._port: Future[int] = Future()
        threading.Thread(target=self._serve, daemon=True).start()

    def address(self) -> tuple[str, int]:
        """Where it listens, when it does."""
        return self._setup.host, self._port.result()

    def _serve(self) -> None:
        from gigpo_mega.rollout.workers.server import player_of, serve

        try:
            with player_of(self._setup) as player:
                asyncio.run(serve(player, self._setup, self._port.set_result))
        except Exception as error:
            self._port.set_exception(error)


class ActorWorker:
    """An actor that serves `setup`, on one of the nodes that have fewest of them."""

    def __init__(self, setup: Setup) -> None:
        self.secret = setup.secret
        self._actor = Actor("rollout.pool ray", "a rollout worker", "rollout.workers", ActorServer, setup)
        self._actor.start()

    def address(self) -> tuple[str, int]:
        """Where it listens, when it does; raises UserError if the cluster has no room, or it cannot start."""
        return self._actor.placed("address")

    def restart(self) -> None:
        """Put another actor in its place."""
        self.close()
        self._actor.start()

    def close(self) -> None:
        """End it."""
        self._actor.close()
