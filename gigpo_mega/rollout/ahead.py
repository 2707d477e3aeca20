"""Rollouts that run ahead of the learner: engines play what comes next while it learns.

Groups of iteration i begin as soon as the engines have the weights of iteration i - `max_staleness`: no token
is older than that when it is learned from, and nothing that was played is thrown away. It is AReaL's rule of
admission (arXiv 2505.24298), but the tasks of an iteration are fixed beforehand: it is not filled with those
whose episodes happen to be short.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from gigpo_mega.errors import first
from gigpo_mega.rollout.collector import Collection, CollectStats, OnCollected
from gigpo_mega.rollout.engines.fleet import Served
from gigpo_mega.rollout.group_player import Counts, GroupPlayer, Terms
from gigpo_mega.rollout.quota import Quota

_LOOK_SECONDS = 0.1  # between two looks whether the thread still lives
_GROUPS = 1 << 32  # of an iteration at most: among all that are played, each group has a number of its own


class Admission:
    """Which iterations may begin: those up to that of the engines' weights plus `max_staleness`."""

    def __init__(self, max_staleness: int) -> None:
        self._max_staleness = max_staleness
        self._version: int | None = None  # of the engines' weights
        self._changed = asyncio.Event()

    def admit(self, version: int) -> None:
        """The engines have the weights of `version`; in the event loop."""
        self._version = version
        self._changed.set()

    async def wait(self, iteration: int) -> None:
        """Wait until `iteration` may begin."""
        while self._version is None or iteration > self._version + self._max_staleness:
            self._changed.clear()
            await self._changed.wait()


class Ahead:
    """Has `player` play the quotas of `iterations`, in a thread of its own.

    `quota(iteration)` is called there when the iteration is admitted. Groups of several iterations are played
    at the same time; the earlier ones get free places first.
    """

    def __init__(
        self,
        player: GroupPlayer,
        terms: Terms,
        iterations: range,
        quota: Callable[[int], Quota],
        max_staleness: int,
    ) -> None:
        self._player, self._terms, self._quota = player, terms, quota
        self._iterations, self._admission = iterations, Admission(max_staleness)
        self._done = {iteration: Future[None]() for iteration in iterations}
        self._collections: dict[int, Collection] = {}  # by iteration, of those that lacked groups
        self._awaited: tuple[int, OnCollected | None] = (-1, None)
        self._before = Counts(), tuple(Served() for _ in player.engines)  # at the latest return of `wait`
        self._loop = asyncio.new_event_loop()
        self._playing: asyncio.Task[None] | None = None
        self._closed = self._over = False
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether nothing is played any more: all iterations are complete, or a failure has ended them."""
        return self._over

    def admit(self, version: int) -> None:
        """Begin what the weights of `version`, which the engines have now, allow."""
        self._call(self._admission.admit, version)

    def wait(
        self, iteration: int, on_progress: OnCollected | None = None
    ) -> tuple[CollectStats, Sequence[Served]] | None:
        """What was done since the last call, once all groups of `iteration` are kept; None if none lacked.

        Raises what ended the playing, as `Collector.collect` does. After the last iteration nothing is played
        any more.
        """
        self._awaited = iteration, on_progress
        self._done[iteration].result()
        if iteration == self._iterations[-1]:
            self._thread.join()
        if (collection := self._collections.pop(iteration, None)) is None:
            return None
        stats, engines = collection.stats(), self._player.engines
        served = [engine.since(before) for engine, before in zip(engines, self._before[1], strict=True)]
        self._before = self._player.counts, tuple(engine.since(Served()) for engine in engines)
        return stats, served

    def lose(self, number: int, reason: str) -> None:
        """As `GroupPlayer.lose`, from any thread."""
        self._complete(self._player.lose, number, reason)

    def readmit(self, urls: Sequence[str]) -> None:
        """As `GroupPlayer.readmit`, from any thread."""
        self._complete(self._player.readmit, urls)

    def hold(self, held: bool) -> None:
        """As `GroupPlayer.hold`, from any thread."""
        self._complete(self._player.hold, held)

    def close(self) -> None:
        """Give up what is played; harmless when repeated."""
        self._call(self._cancel)
        self._thread.join()

    def _call(self, act: Callable[..., Any], *args: Any) -> None:
        """`act(*args)` in the event loop; after its end nothing."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(act, *args)

    def _complete(self, act: Callable[..., Any], *args: Any) -> None:
        """`act(*args)` in the event loop, or here after its end; returns when it has been done."""
        done = threading.Event()

        def do() -> None:
            try:
                act(*args)
            finally:
                done.set()

        self._call(do)
        while self._thread.is_alive():
            if done.wait(_LOOK_SECONDS):
                return
        if not done.is_set():
            act(*args)

    def _cancel(self) -> None:
        self._closed = True
        if self._playing is not None:
            self._playing.cancel()

    def _run(self) -> None:
        failure: BaseException = asyncio.CancelledError()
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._play())
        except BaseException as error:
            failure = error
        self._over = True
        for done in self._done.values():
            if not done.done():
                done.set_exception(failure)

    async def _play(self) -> None:
        self._playing = asyncio.current_task()
        if self._closed:
            return
        async with self._player.opened(self._terms, self._report):
            try:
                async with asyncio.TaskGroup() as running:
                    for iteration in self._iterations:
                        await self._admission.wait(iteration)
                        running.create_task(self._collect(iteration))
            except BaseExceptionGroup as failures:
                raise first(failures) from None

    async def _collect(self, iteration: int) -> None:
        quota = self._quota(iteration).numbered_from(iteration * _GROUPS)
        if quota.needed:
            self._collections[iteration] = collection = Collection(
                quota, self._terms.size, self._player, lambda: self._player.counts.since(self._before[0])
            )
            await collection.play()
        self._done[iteration].set_result(None)

    def _report(self) -> None:
        iteration, on_progress = self._awaited
        if on_progress is not None and (collection := self._collections.get(iteration)) is not None:
            on_progress(collection.stats())
