"""Several engines as one: episodes stay where their prefix is cached, and go on elsewhere if it fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from gigpo_mega.rollout.engines.base import Completion, Engine, EngineError, EngineLost, Sampling
from gigpo_mega.telemetry.timeline import Timeline

IMBALANCE = 8  # requests in flight above the least loaded engine, past which a session moves (simulated)
LOOKS = 100  # over `patience` / 2; a busy server that had forgotten nothing lacked some in 12 in a row
REMEMBERED = 2**16  # sessions, the latest
REPEATS = 2  # of a request that was forgotten

_Request = asyncio.Future[Completion]


class _Again(Exception):
    """A request is to be made again: the engine does not know of it, or was lost and serves again since."""

    def __init__(self, forgotten: bool) -> None:
        super().__init__()
        self.forgotten = forgotten


@dataclass(slots=True)
class Served:
    """What an engine did in a collection."""

    lost: str | None = None  # why it serves no longer
    requests: int = 0
    cached_tokens: int = 0
    moves: int = 0  # of episodes that went on here after they had begun elsewhere
    forgotten: int = 0  # requests that were made again, as it had no answer and did not know of them

    def since(self, before: Served) -> Served:
        """What it did after `before`."""
        requests, cached = self.requests - before.requests, self.cached_tokens - before.cached_tokens
        moves, forgotten = self.moves - before.moves, self.forgotten - before.forgotten
        return Served(self.lost, requests, cached, moves, forgotten)

    def add(self, other: Served) -> None:
        """Count what `other` did, too."""
        self.requests += other.requests
        self.cached_tokens += other.cached_tokens
        self.moves += other.moves
        self.forgotten += other.forgotten


@dataclass(slots=True, kw_only=True)
class Member(Served):
    """One engine of a fleet."""

    engine: Engine
    name: str = ""
    answered: float = 0.0  # time of its latest answer, or of the request that ended its idleness
    running: dict[_Request, float] = field(default_factory=dict[_Request, float])  # and when each began
    forgot: set[_Request] = field(default_factory=set[_Request])  # those of `running` that are made again
    question: asyncio.Task[None] | None = None  # how many it holds, while it is asked
    gate: asyncio.Lock = field(default_factory=asyncio.Lock)  # no request is made while it is held


class Fleet:
    """An `Engine` made of `engines`.

    A session's first request goes to the engine with the fewest requests in flight, later ones to the same
    engine, unless it has failed or has more than `imbalance` requests in flight above the least loaded one.
    Engines that are not `near` get requests only when none of those serves.
    An engine that raises EngineLost, or gives no answer for `patience` seconds and then fails its health
    check, serves no longer until `readmit`; its requests are made again, from their token ids, of another.
    When a request has waited for `patience` seconds, the engine gets no new ones until it says that it holds
    all it was asked for. If it says LOOKS times in a row that some are missing, as many, the oldest first,
    are made again; it goes on serving.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        patience: float,
        imbalance: int = IMBALANCE,
        near: Collection[int] = (),
        timeline: Timeline | None = None,
    ) -> None:
        self.members = tuple(Member(engine=e, name=f"engine {number}") for number, e in enumerate(engines))
        self._timeline = timeline or Timeline()
        self._near = [self.members[number] for number in near]
        self._imbalance, self._patience = imbalance, patience
        self._places: dict[int, Member] = {}  # by session
        self._held = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._places.clear()
        async with AsyncExitStack() as stack:
            for member in self.members:
                member.requests = member.cached_tokens = member.moves = member.forgotten = 0
                member.gate = asyncio.Lock()
                await stack.enter_async_context(member.engine)
            stack.push_async_callback(_ended, asyncio.create_task(self._watch()))
            stack.push_async_callback(self._end_questions)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _end_questions(self) -> None:
        for member in self.members:
            if member.question is not None:
                await _ended(member.question)
                member.question = None

    def lose(self, number: int, reason: str) -> None:
        """Let engine `number` serve no longer."""
        _lose(self.members[number], reason)

    def readmit(self, number: int) -> None:
        """Let engine `number` serve again: it is alive and has the learner's weights."""
        self.members[number].lost = None

    def hold(self, held: bool) -> None:
        """While `held` the engines are paused, and are not blamed for their silence."""
        if held == self._held:
            return
        self._held = held
        for member in self.members:
            for request in member.running:
                member.answered = member.running[request] = request.get_loop().time()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        """Sample one response.

        Raises EngineError if it is refused, or forgotten again and again; EngineLost if no engine is left.
        """
        forgotten = 0
        while True:
            member = self._place(session)
            try:
                with self._timeline.span(member.name, f"episode {session}"):
                    return await _ask(member, prompt_ids, sampling, session)
            except EngineLost as error:
                _lose(member, str(error))
            except _Again as again:
                forgotten += again.forgotten
                if forgotten > REPEATS:
                    raise EngineError(f"{member.name} has lost the answer {forgotten} times") from None

    async def healthy(self) -> bool:
        """Whether any engine serves."""
        return any(member.lost is None for member in self.members)

    async def held(self) -> int | None:
        """Requests that are in flight."""
        return sum(len(member.running) for member in self.members)

    def _place(self, session: int) -> Member:
        serving = [member for member in self._near if member.lost is None]
        serving = serving or [member for member in self.members if member.lost is None]
        if not serving:
            raise EngineLost("no engine is left: " + "; ".join(str(member.lost) for member in self.members))
        idlest = min(
            serving, key=lambda member: (member.gate.locked(), len(member.running), member.requests)
        )
        place = self._places.setdefault(session, idlest)
        if len(self._places) > REMEMBERED:
            del self._places[next(iter(self._places))]
        if place.lost is not None or len(place.running) > len(idlest.running) + self._imbalance:
            self._places[session] = place = idlest
            place.moves += 1
        return place

    async def _watch(self) -> None:
        """Lose engines that owe answers and have none to give, and make requests again that they forgot."""
        while True:
            await asyncio.sleep(self._patience / 4)
            if self._held:
                continue
            late = asyncio.get_running_loop().time() - self._patience
            serving = [member for member in self.members if member.lost is None]
            silent = [member for member in serving if member.running and member.answered < late]
            alive = await asyncio.gather(*(member.engine.healthy() for member in silent))
            for member, well in zip(silent, alive, strict=True):
                if not well and member.answered < late and not self._held:
                    _lose(member, f"no answer for {self._patience:g} s, and its health check failed")
            for member in serving:
                free = member.question is None or member.question.done()
                if free and min(member.running.values(), default=late) < late:
                    member.question = asyncio.create_task(self._question(member))

    async def _question(self, member: Member) -> None:
        """End the overdue requests that `member` has forgotten; which ones they are it does not say."""
        missing = await self._missing(member)
        late = asyncio.get_running_loop().time() - self._patience
        overdue = [request for request, began in member.running.items() if began < late]
        for request in overdue[:missing]:
            member.forgotten += 1
            member.forgot.add(request)
            request.cancel()

    async def _missing(self, member: Member) -> int:
        """How many requests `member` was asked for and does not hold: the fewest of all looks."""
        fewest = len(member.running)
        async with member.gate:  # of many new ones, some are always on their way
            for _ in range(LOOKS):
                asked, held = len(member.running), await member.engine.held()
                if held is None or self._held or member.lost is not None:
                    return 0
                fewest = min(fewest, asked - held)
                if fewest <= 0:
                    return 0
                await asyncio.sleep(self._patience / 2 / LOOKS)
        return fewest


async def _ask(member: Member, prompt_ids: Sequence[int], sampling: Sampling, session: int) -> Completion:
    """The answer of `member`; raises EngineLost if it is lost meanwhile."""
    loop = asyncio.get_running_loop()
    async with member.gate:
        if member.lost is not None:
            raise EngineLost(member.lost)
    if not member.running:
        member.answered = loop.time()
    request = loop.create_task(_generate(member.engine, prompt_ids, sampling, session))
    member.running[request] = loop.time()
    member.requests += 1
    try:
        completion = await request
    except asyncio.CancelledError:
        caller = asyncio.current_task()
        if caller is not None and caller.cancelling():
            raise
        if member.lost is not None:
            raise EngineLost(member.lost) from None
        raise _Again(request in member.forgot) from None
    finally:
        del member.running[request]
        member.forgot.discard(request)
    member.answered = loop.time()
    member.cached_tokens += completion.cached_tokens
    return completion


def _lose(member: Member, reason: str) -> None:
    """The first reason stays: what follows is its consequence."""
    member.lost = member.lost or reason
    for request in member.running:
        request.cancel()


async def _generate(
    engine: Engine, prompt_ids: Sequence[int], sampling: Sampling, session: int
) -> Completion:
    return await engine.generate(prompt_ids, sampling, session)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
