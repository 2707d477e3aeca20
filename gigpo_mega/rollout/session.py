"""Everything that plays episodes, started and ended together: clients of engines, environments, prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gigpo_mega.config import Config
from gigpo_mega.rollout.ahead import Ahead
from gigpo_mega.rollout.collector import Collector, CollectStats
from gigpo_mega.rollout.engines.base import EngineLost, Sampling
from gigpo_mega.rollout.engines.fleet import Served
from gigpo_mega.rollout.engines.memory import CacheMemory
from gigpo_mega.rollout.group_player import GroupPlayer, Terms
from gigpo_mega.rollout.local import local_player
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.workers.launch import remote_player
from gigpo_mega.telemetry.progress import Bar, stage
from gigpo_mega.telemetry.timeline import Span
from gigpo_mega.types import Group


class RolloutSession:
    """A context manager: inside it, `collect` plays episodes with the policy in the servers at `urls`.

    The policy's Hugging Face directory is `model`. If the servers `lend_memory`, their KV caches exist only
    while episodes are played.
    """

    def __init__(self, cfg: Config, model: Path, urls: Sequence[str], lend_memory: bool = False) -> None:
        self._cfg, self._model, self._urls = cfg, model, tuple(urls)
        self._stack = ExitStack()
        self._ahead: Ahead | None = None  # if it plays
        self._lend_memory = lend_memory
        self._memory: dict[str, CacheMemory] = {}  # of servers that lend theirs

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            make = remote_player if self._cfg.rollout.workers > 1 else local_player
            self._player: GroupPlayer = stack.enter_context(make(self._cfg, self._model, self._urls))
            self._lend(self._urls)
            self._collector = Collector(self._player)
            self._done: tuple[CollectStats, Sequence[Served]] = self._collector.stats, self._player.engines
            stack.callback(self._stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def stats(self) -> CollectStats:
        """How the latest collection went."""
        return self._done[0]

    @property
    def engines(self) -> Sequence[Served]:
        """What each server did in the latest collection."""
        return self._done[1]

    def spans(self) -> Sequence[Span]:
        """What ran since the last call, if the run keeps a timeline."""
        return self._player.spans()

    @property
    def lost(self) -> dict[str, str]:
        """Servers that serve no longer, each with the reason."""
        found = zip(self._urls, self._player.engines, strict=True)
        return {url: engine.lost for url, engine in found if engine.lost is not None}

    def lose(self, url: str, reason: str) -> None:
        """Let the server at `url` serve no longer."""
        self._playing.lose(self._urls.index(url), reason)

    def readmit(self, urls: Sequence[str]) -> None:
        """Let all servers serve again, at `urls`: they are alive and have the learner's weights."""
        self._lend(self.lost)  # launched again, they hold all their memory
        self._urls = tuple(urls)
        self._playing.readmit(urls)

    def hold(self, held: bool) -> None:
        """While `held` the servers are paused, and are not blamed for their silence."""
        self._playing.hold(held)

    @property
    def _playing(self) -> Ahead | GroupPlayer:
        """Whom engines are lost to: what plays ahead, unless a failure has ended it."""
        return self._player if self._ahead is None or self._ahead.over else self._ahead

    def _lend(self, urls: Iterable[str]) -> None:
        for url in urls if self._lend_memory else ():
            self._memory[url] = CacheMemory(url, self._cfg.engine.request_timeout)
            self._memory[url].release()

    def collect(
        self,
        quota: Quota,
        group_size: int,
        temperature: float,
        top_p: float = 1.0,
        name: str = "rollout",
    ) -> dict[int, Group]:
        """`group_size` episodes of each task that `quota` needs, with a progress bar called `name`.

        Raises as `Collector.collect` does.
        """
        sampling = self._sampling(temperature, top_p)
        self._each_memory(CacheMemory.resume)
        with stage(name, quota.needed * group_size, "episodes") as bar:
            groups = self._collector.collect(quota, group_size, sampling, _Advance(bar))
        self._done = self._collector.stats, self._player.engines
        self._each_memory(CacheMemory.release)
        return groups

    def collect_ahead(self, iterations: range, quota: Callable[[int], Quota]) -> bool:
        """Have the groups of the first of `iterations` played, and those of later ones as far as they may be.

        The engines have the weights of the first one. All that `quota(iteration)` lacks when an iteration
        begins is given to its `keep`; iterations that are under way from an earlier call go on. Whether any
        were lacking. Raises as `Collector.collect` does.
        """
        rollout = self._cfg.rollout
        if self._ahead is None:
            at_once = (1 + rollout.max_staleness) * (rollout.groups + rollout.oversample)
            terms = Terms(rollout.group_size, at_once, self._sampling(rollout.temperature, rollout.top_p))
            self._ahead = Ahead(self._player, terms, iterations, quota, rollout.max_staleness)
        self._ahead.admit(iterations[0])
        try:
            with stage("rollout", rollout.groups * rollout.group_size, "episodes") as bar:
                done = self._ahead.wait(iterations[0], _Advance(bar))
        finally:
            if self._ahead.over:
                self._ahead = None
        self._done = done or self._done
        return done is not None

    def _each_memory(self, act: Callable[[CacheMemory], None]) -> None:
        """`act` on the memory of all servers that serve; one that fails serves no longer."""
        for url, memory in self._memory.items():
            if url not in self.lost:
                try:
                    act(memory)
                except EngineLost as error:
                    self.lose(url, str(error))

    def _sampling(self, temperature: float, top_p: float) -> Sampling:
        return Sampling(temperature, top_p, self._cfg.rollout.max_response_tokens)

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()


@dataclass(slots=True)
class _Advance:
    """Feeds a bar the growth of the count of finished episodes."""

    bar: Bar
    done: int = 0

    def __call__(self, stats: CollectStats) -> None:
        if stats.episodes > self.done:
            self.bar.advance(stats.episodes - self.done)
            self.done = stats.episodes
