"""Rollouts of any size in virtual time: the real fleet, simulated engines and environments.

Nothing here is measured on an engine. Service times are assumptions (`Service`); what the simulation shows is
what scheduling makes of them.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from gigpo_mega.rollout.ahead import Admission
from gigpo_mega.rollout.engines.base import Completion, EngineLost, Sampling
from gigpo_mega.rollout.engines.fleet import IMBALANCE, Fleet
from gigpo_mega.types import Float32, Float64, Int32, Int64

_IDS: Int32 = np.zeros(0, dtype=np.int32)
_LOGPROBS: Float32 = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Service:
    """Assumed times of one engine; the defaults are of the order of a 7B policy on one H100."""

    prefill: float = 25_000.0  # uncached prompt tokens per second
    decode: float = 0.011  # seconds of a decoding step of one sequence
    share: float = 1.2e-4  # seconds that every further sequence adds to it
    cache: int = 400_000  # tokens of the prefix cache


@dataclass(frozen=True, slots=True)
class Workload:
    """Episodes of heavy-tailed lengths and environment times; prompts grow with the conversation."""

    episodes: int = 4096
    group: int = 8  # episodes of a task
    ahead: int = 0  # groups that are played beyond these; those under way when enough are complete end
    steps: float = 15.0  # median of model calls per episode, log-normal
    most_steps: int = 50
    spread: float = 0.6  # sigma of the log-normal of steps
    first_prompt: int = 350  # tokens
    observation: int = 60  # tokens that a step adds, beside the answer
    answer: int = 80  # median tokens of an answer, log-normal with sigma 0.5
    think: float = 0.02  # median seconds of an environment's step, log-normal with sigma 1.5

    def draw(self, seed: int) -> Drawn:
        """The workload's episodes, the same for every schedule."""
        rng = np.random.default_rng(seed)
        episodes = self.episodes + self.ahead * self.group
        steps = np.exp(rng.normal(np.log(self.steps), self.spread, episodes))
        shape = episodes, self.most_steps
        return Drawn(
            np.clip(steps, 1, self.most_steps).astype(np.int64),
            np.clip(np.exp(rng.normal(np.log(self.answer), 0.5, shape)), 4, 512).astype(np.int64),
            np.exp(rng.normal(np.log(self.think), 1.5, shape)),
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """Episodes as drawn: model calls [E], tokens of answers [E, most], seconds of steps [E, most]."""

    steps: Int64
    answers: Int64
    seconds: Float64


class SimulatedEngine:
    """Continuous batching in virtual time: prefills hold the batch up, a step serves all that decode."""

    def __init__(self, service: Service) -> None:
        self.busy = 0.0  # seconds in which it had work
        self.fails_at = float("inf")
        self._service = service
        self._cache: OrderedDict[int, int] = OrderedDict()  # session -> tokens, the oldest first
        self._held = 0
        self._running: list[tuple[float, int, asyncio.Future[None]]] = []  # by the step that ends each
        self._prompts: dict[int, int] = {}  # tokens, by the number of what runs
        self._step = 0.0  # decoding steps made
        self._seen = 0.0  # up to when `busy` and `_step` count
        self._stalled = 0.0  # seconds of prefill that hold up decoding
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._advance()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: int = 0) -> Completion:
        """`sampling.max_new_tokens` tokens, in virtual time."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self.fails_at:
            raise EngineLost("it failed")
        self._advance()
        cached = min(self._cache.pop(session, 0), len(prompt_ids))
        self._keep(session, len(prompt_ids) + sampling.max_new_tokens, cached)
        self._stalled += (len(prompt_ids) - cached) / self._service.prefill
        future: asyncio.Future[None] = loop.create_future()
        self._number += 1
        self._prompts[self._number] = len(prompt_ids)
        heapq.heappush(self._running, (self._step + sampling.max_new_tokens, self._number, future))
        self._arm()
        await future
        return Completion(_IDS, _LOGPROBS, _IDS, "stop", cached)

    def update(self, seconds: float) -> None:
        """New weights, in a pause of some seconds: the keys and values of what runs are computed again."""
        self._advance()
        running = sum(self._prompts[number] for _, number, _ in self._running)
        self._stalled += seconds + running / self._service.prefill
        self._cache.clear()
        self._held = 0
        self._arm()

    async def healthy(self) -> bool:
        """Whether it has not failed yet."""
        return asyncio.get_running_loop().time() < self.fails_at

    async def held(self) -> int:
        """Requests that run."""
        return len(self._running)

    def _keep(self, session: int, tokens: int, before: int) -> None:
        self._cache[session] = tokens
        self._held += tokens - before
        while self._held > self._service.cache and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1]

    def _pace(self) -> float:
        """Seconds of a decoding step."""
        return self._service.decode + self._service.share * len(self._running)

    def _advance(self) -> None:
        """Count what happened since the last time."""
        now = asyncio.get_running_loop().time()
        passed, self._seen = now - self._seen, now
        if self._running:
            self.busy += passed
            stalled = min(passed, self._stalled)
            self._stalled -= stalled
            self._step += (passed - stalled) / self._pace()

    def _arm(self) -> None:
        """Wake up when the next answer is complete."""
        if self._timer is not None:
            self._timer.cancel()
        if self._running:
            left = max(0.0, self._running[0][0] - self._step) * self._pace() + self._stalled
            self._timer = asyncio.get_running_loop().call_later(left, self._finish)

    def _finish(self) -> None:
        self._advance()
        while self._running and self._running[0][0] <= self._step + 1e-6:
            _, number, future = heapq.heappop(self._running)
            del self._prompts[number]
            if not future.done():
                future.set_result(None)
        self._arm()


class _Jump(selectors.BaseSelector):
    """Never waits: the loop's clock jumps to the next timer."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return self._real.select(0)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Any:
        return self._real.get_map()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in whose time only timers pass."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._jump.now


def simulate(
    engines: int,
    work: Workload,
    service: Service,
    concurrency: int,
    *,
    lock_step: bool = False,
    imbalance: int = IMBALANCE,
    failures: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """What one collection looks like: seconds, idle share of the engines, cached share of prompts, moves,
    model calls per episode of the groups that were complete.

    `lock_step` steps `concurrency` episodes together and waits for the slowest, as batch rollouts do.
    `failures` engines fail, evenly over the first minutes.
    """
    drawn = work.draw(seed)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(
            _collect(engines, work, service, concurrency, drawn, lock_step, imbalance, failures)
        )


async def _collect(
    count: int, work: Workload, service: Service, concurrency: int, drawn: Drawn,
    lock_step: bool, imbalance: int, failures: int,
) -> dict[str, float]:  # fmt: skip
    engines = [SimulatedEngine(service) for _ in range(count)]
    for number, engine in enumerate(engines[:failures]):
        engine.fails_at = 60.0 * (number + 1)
    loop = asyncio.get_running_loop()
    prompted = 0
    left = Counter(dict.fromkeys(range(len(drawn.steps) // work.group), work.group))  # episodes
    complete: list[int] = []  # groups
    async with Fleet(engines, patience=60.0, imbalance=imbalance) as fleet:

        async def call(episode: int, step: int, prompt: int) -> int:
            nonlocal prompted
            prompted += prompt
            answer = int(drawn.answers[episode, step])
            await fleet.generate(range(prompt), Sampling(max_new_tokens=answer), episode)
            await asyncio.sleep(drawn.seconds[episode, step])
            return prompt + answer + work.observation

        async def play(episode: int) -> None:
            async with room:
                prompt = work.first_prompt
                for step in range(drawn.steps[episode]):
                    if len(complete) * work.group >= work.episodes:
                        return
                    prompt = await call(episode, step, prompt)
            group = episode // work.group
            left[group] -= 1
            if not left[group]:
                complete.append(group)

        room = asyncio.Semaphore(concurrency)
        if lock_step:
            for first in range(0, work.episodes, concurrency):
                batch = range(first, min(first + concurrency, work.episodes))
                prompts = dict.fromkeys(batch, work.first_prompt)
                for step in range(int(drawn.steps[batch].max())):
                    going = [episode for episode in batch if step < drawn.steps[episode]]
                    grown = await asyncio.gather(*(call(e, step, prompts[e]) for e in going))
                    prompts |= dict(zip(going, grown, strict=True))
        else:
            await asyncio.gather(*(play(episode) for episode in range(len(drawn.steps))))
        seconds = loop.time()
        cached = sum(member.cached_tokens for member in fleet.members)
        moves = sum(member.moves for member in fleet.members)
    idle = 1 - sum(engine.busy for engine in engines) / (count * seconds)
    needed = complete[: work.episodes // work.group]
    steps = [drawn.steps[group * work.group : (group + 1) * work.group].mean() for group in needed]
    found = {
        "seconds": seconds,
        "idle_share": float(idle),
        "cached_share": cached / prompted,
        "moves": moves,
        "steps": float(np.mean(steps or drawn.steps)),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Training:
    """Iterations of the workload, each followed by an update of the learner."""

    max_staleness: int
    update: float  # seconds
    push: float = 1.0  # seconds
    iterations: int = 8


def train(engines: int, work: Workload, service: Service, plan: Training) -> dict[str, float]:
    """What a run looks like: seconds per iteration, idle shares of engines and learner, mean staleness.

    As many episodes as an iteration has are in flight at most.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_train(engines, work, service, plan))


async def _train(count: int, work: Workload, service: Service, plan: Training) -> dict[str, float]:
    engines = [SimulatedEngine(service) for _ in range(count)]
    loop, admission, version = asyncio.get_running_loop(), Admission(plan.max_staleness), 0
    room, ages = asyncio.Semaphore(work.episodes), list[int]()
    async with Fleet(engines, patience=1e9) as fleet:

        async def play(iteration: int, drawn: Drawn, episode: int) -> None:
            async with room:
                prompt = work.first_prompt
                for step in range(drawn.steps[episode]):
                    answer = int(drawn.answers[episode, step])
                    session = iteration * work.episodes + episode
                    await fleet.generate(range(prompt), Sampling(max_new_tokens=answer), session)
                    ages.append(iteration - version)
                    await asyncio.sleep(drawn.seconds[episode, step])
                    prompt += answer + work.observation

        async def collect(iteration: int) -> None:
            await admission.wait(iteration)
            drawn = work.draw(iteration)
            await asyncio.gather(*(play(iteration, drawn, episode) for episode in range(work.episodes)))

        collections = [asyncio.create_task(collect(iteration)) for iteration in range(plan.iterations)]
        waited = 0.0
        for iteration, collection in enumerate(collections):
            for engine in engines if iteration else ():
                engine.update(plan.push)
            version = iteration
            admission.admit(version)
            begin = loop.time()
            await collection
            waited += loop.time() - begin
            await asyncio.sleep(plan.update)
        seconds = loop.time()
    found = {
        "seconds": float(seconds / plan.iterations),
        "engines_idle": float(1 - sum(engine.busy for engine in engines) / (count * seconds)),
        "learner_idle": float(waited / seconds),
        "staleness": float(np.mean(ages)),
    }
    return {name: round(value, 4) for name, value in found.items()}
