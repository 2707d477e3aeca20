"""Plays episodes by a user's agent, which talks to the policy through the gateway."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

from envs.agent import Agent, Connection, Outcome, checked_outcome
from envs.base import EnvError, Task
from gigpo_mega.config import EnvironmentConfig
from gigpo_mega.rollout.engines.base import Engine, Sampling
from gigpo_mega.rollout.episode import OnStep
from gigpo_mega.rollout.gateway.server import Gateway
from gigpo_mega.rollout.gateway.session import Session
from gigpo_mega.rollout.pools.base import EnvironmentLost, PoolError, naming
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.telemetry.timeline import Timeline
from gigpo_mega.types import Trajectory

Played = Outcome | EnvError | PoolError


class AgentPlayer:
    """Plays episodes by `agent`, called with `options` in a thread for each; `pool` is the gateway."""

    def __init__(
        self,
        gateway: Gateway,
        agent: Agent,
        options: Mapping[str, Any],
        config: EnvironmentConfig,
        timeline: Timeline | None = None,
    ) -> None:
        self.pool = gateway
        self._agent, self._options = agent, options
        self._config = config
        self._timeline = timeline or Timeline()

    @property
    def engine(self) -> Engine:
        """What samples the answers."""
        return self.pool.policy.engine

    @property
    def prompts(self) -> PromptBuilder:
        """What cuts prompts, and counts those."""
        return self.pool.policy.prompts

    async def play(
        self, slot: int, task: Task, sampling: Sampling, fresh: bool, on_step: OnStep
    ) -> Trajectory | None:
        """An episode of `task`; None if it was ended. `fresh` has no meaning: nothing is used again.

        Raises EngineError, EnvironmentLost or EnvUnavailable if another try may succeed, else EnvError (an
        unusable task or outcome) or PoolError (an exception); those of the agent name task and agent.
        """
        del fresh
        with self.pool.episode(task, sampling, on_step) as (session, connection):
            playing = in_thread(partial(self._play, task, connection))
            playing.add_done_callback(lambda _: session.over.set())
            track = f"{self._timeline.place}agent {slot}"
            try:
                with self._timeline.span(track, f"episode {session.number}: {task.id}"):
                    await self._over(session)
            finally:
                playing.cancel()
            if session.failure is not None:
                raise session.failure
            if playing.cancelled():
                return None
            with self._naming(session):
                return session.trajectory(_outcome(session, playing.result()))

    async def _over(self, session: Session) -> None:
        """Wait until the episode is over; raises EnvironmentLost if the agent takes too long."""
        limit = self._config.step_timeout
        while not session.over.is_set():
            left = None if limit is None else limit - session.idle_seconds
            if left is not None and left <= 0:
                with self._naming(session):
                    raise EnvironmentLost(
                        f"between two model calls more than environment.step_timeout {limit} s passed",
                        at_fault=True,
                    )
            with suppress(TimeoutError):
                await asyncio.wait_for(session.over.wait(), left)

    def _naming(self, session: Session) -> AbstractContextManager[None]:
        return naming(self._config.name, session.task, f"agent after {session.calls} model calls")

    def _play(self, task: Task, connection: Connection) -> Played:
        """What the agent returns or raises, in its thread."""
        try:
            return checked_outcome(self._agent(task, connection, **self._options))
        except EnvError as error:
            return error
        except BaseException as error:  # SystemExit, too, is a bug
            return PoolError(f"{error!r}\n{traceback.format_exc()}")


def _outcome(session: Session, played: Played) -> Outcome:
    """The outcome of an agent; an exception after it was refused further calls is a failure of the policy."""
    if session.exceeded and session.calls and isinstance(played, PoolError):
        return Outcome(0.0, success=False)
    if isinstance(played, Exception):
        raise played
    if not session.calls:
        raise EnvError("the agent returned without a model call, so that there is nothing to learn from")
    return played


def in_thread(function: Callable[[], Played]) -> asyncio.Future[Played]:
    """The result of `function`, which runs in a thread that ends with the process if nothing else ends it."""
    found = concurrent.futures.Future[Played]()

    def run() -> None:
        result = function()
        with suppress(concurrent.futures.InvalidStateError):  # nobody waits for it any longer
            found.set_result(result)

    threading.Thread(target=run, name="agent", daemon=True).start()
    return asyncio.wrap_future(found)
