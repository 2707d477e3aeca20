"""Everything that plays episodes, started together and ended together: server, client, environments,
prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from envs.base import Task, lookup
from envs.dialogue import choose
from gigpo_mega.config import Config
from gigpo_mega.rollout.collector import Collector, CollectStats
from gigpo_mega.rollout.engine import Sampling
from gigpo_mega.rollout.pool import EnvironmentPool
from gigpo_mega.rollout.prompt import PromptBuilder
from gigpo_mega.rollout.server import Progress, SGLangServer
from gigpo_mega.rollout.sglang import SGLangEngine
from gigpo_mega.rollout.tokenizer import Tokenizer
from gigpo_mega.telemetry.progress import Bar, stage
from gigpo_mega.types import Group


class RolloutSession:
    """A context manager: inside it, `collect` plays episodes with the policy in the server.

    The server starts with the weights in `cfg.model.path`, tagged `version`.
    """

    def __init__(self, cfg: Config, model: Path, output: Path, version: int = 0) -> None:
        self._cfg, self._model, self._output, self._version = cfg, model, output, version
        self._stack = ExitStack()
        self.url = ""

    def __enter__(self) -> Self:
        cfg = self._cfg
        with ExitStack() as stack:
            dialogue = choose(lookup(cfg.environment.name), cfg.environment.dialogue)
            tokenizer = Tokenizer(self._model)
            pool = EnvironmentPool(cfg.environment.name, cfg.environment.options, cfg.environment.workers)
            stack.callback(pool.close)
            with stage("engine", None, "s of start-up") as bar:
                server = stack.enter_context(self._server(_Seconds(bar)))
            self.url = server.url
            engine = SGLangEngine(server.url, version=self._version, timeout=cfg.engine.request_timeout)
            prompts = PromptBuilder(cfg.environment, dialogue, tokenizer, cfg.rollout.max_prompt_tokens)
            self._stops = tokenizer.stop_token_ids
            self._collector = Collector(
                engine, pool, prompts, dialogue, tokenizer, cfg.environment, cfg.rollout.concurrency
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def stats(self) -> CollectStats:
        """How the latest collection went."""
        return self._collector.stats

    def collect(
        self,
        tasks: Sequence[Task],
        group_size: int,
        temperature: float,
        top_p: float = 1.0,
        name: str = "rollout",
    ) -> tuple[Group, ...]:
        """`group_size` episodes of each task, with a progress bar called `name`."""
        sampling = Sampling(temperature, top_p, self._cfg.rollout.max_response_tokens, self._stops)
        with stage(name, len(tasks) * group_size, "episodes") as bar:
            return self._collector.collect(tasks, group_size, sampling, _Advance(bar))

    def _server(self, on_progress: Progress) -> SGLangServer:
        return SGLangServer(
            self._model,
            self._cfg.engine,
            self._output / "sglang.log",
            dtype=self._cfg.model.dtype,
            version=self._version,
            seed=self._cfg.seed,
            on_progress=on_progress,
        )


@dataclass(slots=True)
class _Advance:
    """Feeds a bar the growth of the count of finished episodes."""

    bar: Bar
    done: int = 0

    def __call__(self, stats: CollectStats) -> None:
        if stats.episodes > self.done:
            self.bar.advance(stats.episodes - self.done)
            self.done = stats.episodes


@dataclass(slots=True)
class _Seconds:
    """Feeds a bar the seconds that a start-up takes."""

    bar: Bar
    done: float = 0.0

    def __call__(self, seconds: float, line: str) -> None:
        self.bar.advance(seconds - self.done)
        self.done = seconds
