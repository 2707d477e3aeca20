"""The leader of a run that plays: episodes in, weights and metrics out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.http import weight_version
from gigpo_mega.rollout.quota import Quota
from gigpo_mega.rollout.session import RolloutSession
from gigpo_mega.rollout.summary import engine_metrics, evaluation_record, fleet_metrics
from gigpo_mega.run.ranks import Signals
from gigpo_mega.run.recorder import Recorder
from gigpo_mega.storage.files import replace_text
from gigpo_mega.tasks import Tasks, TaskStream
from gigpo_mega.telemetry.timeline import Span
from gigpo_mega.types import Group
from gigpo_mega.weights.transport.base import check_version


class Leader(Recorder):
    """Talks to engine and environments, too.

    Making one starts environments; the engines run at `urls` already, and give their KV caches' memory to the
    learner between rollouts if they `lend_memory`. A signal ends what waits for episodes.
    """

    def __init__(
        self,
        cfg: Config,
        model: Path,
        tasks: Tasks,
        start: int,
        signals: Signals,
        urls: Sequence[str],
        lend_memory: bool,
    ) -> None:
        self._urls = urls
        self._stream, self._held_out = TaskStream(tasks.training, cfg.seed), tasks.held_out
        with ExitStack() as opened, signals.interruptible():
            self._session = opened.enter_context(RolloutSession(cfg, model, urls, lend_memory))
            super().__init__(cfg, start, signals)
            opened.callback(super().close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End the environments, and finish the metrics."""
        self._opened.close()

    def lost_engines(self) -> dict[str, str]:
        """Engines that serve no longer, each with the reason; those that do not answer now are lost, too."""
        self._reported_versions()
        return self._session.lost

    def readmit_engines(self, urls: Sequence[str]) -> None:
        """All engines are alive and have the learner's weights; they listen at `urls` now."""
        self._urls = urls
        self._session.readmit(urls)

    def hold_engines(self, held: bool) -> None:
        """While `held` the engines are paused for a push, and are not blamed for their silence."""
        self._session.hold(held)

    def _verify(self, version: int) -> None:
        """Raise PushError for an engine that has other weights than those of `version`."""
        for url, reported in self._reported_versions().items():
            check_version(url, reported, version)

    def _reported_versions(self) -> dict[str, str | None]:
        """Of the engines that serve, what each says that it has; those that do not answer are lost."""
        serving = [url for url in self._urls if url not in self._session.lost]
        with ThreadPoolExecutor(max(len(serving), 1)) as asking:  # one that is gone may take half a minute
            found = dict(zip(serving, asking.map(_reported_version, serving), strict=True))
        for url, reported in found.items():
            if isinstance(reported, Exception):
                self._session.lose(url, f"{url}: {reported}")
        return {url: reported for url, reported in found.items() if not isinstance(reported, Exception)}

    def _sample(self, iteration: int) -> None:
        """Play what the journal lacks of `iteration`; each group is kept there when it is complete."""
        if self._play(iteration):
            self._played = engine_metrics(self._session.stats) | fleet_metrics(self._session.engines)
            for reason in self._session.stats.dropped:
                sys.stderr.write(f"iteration {iteration}: a group was dropped and replaced: {reason}\n")
        self._journal.finish(iteration)

    def _play(self, iteration: int) -> bool:
        """Play the groups that the journal lacks of `iteration`; whether there were any."""
        rollout = self._cfg.rollout
        if rollout.max_staleness:
            self._verify(iteration)
            coming = range(iteration, self._cfg.evaluation.next_after(iteration, self._cfg.iterations))
            with self._signals.interruptible():
                return self._session.collect_ahead(coming, self._quota)
        quota = self._quota(iteration)
        if quota.needed:
            self._verify(iteration)
            with self._signals.interruptible():
                self._session.collect(quota, rollout.group_size, rollout.temperature, rollout.top_p)
        return quota.needed > 0

    def _quota(self, iteration: int) -> Quota:
        rollout, begun = self._cfg.rollout, self._journal.begun(iteration)
        tasks = self._stream.sequence(iteration, rollout.groups)
        return Quota.rest(rollout, tasks, begun, partial(self._keep, iteration))

    def _ran(self) -> Sequence[Span]:
        return self._session.spans()

    def _keep(self, iteration: int, number: int, group: Group) -> None:
        if other := self._unfit(group, iteration):
            raise UserError(
                f"the engine sampled iteration {iteration} with weight versions {sorted(other)}; --resume"
            )
        self._journal.keep(iteration, number, group)

    def has_evaluated(self, iteration: int) -> bool:
        """Whether the panel was played with the weights of `iteration`."""
        return self._evaluation(iteration).exists()

    def evaluate(self, iteration: int) -> Mapping[str, Any]:
        """Play the held-out panel with the weights of `iteration`, and keep the result as JSON."""
        cfg = self._cfg.evaluation
        self._verify(iteration)
        with self._signals.interruptible():
            groups = self._session.collect(Quota.of(self._held_out), 1, cfg.temperature, name="evaluate")
        record = evaluation_record(groups.values(), iteration, cfg.temperature, cfg.split)
        replace_text(self._evaluation(iteration), json.dumps(record, indent=1))
        self._writer.evaluated(record)
        self._report()
        return record

    def _evaluation(self, iteration: int) -> Path:
        return self._cfg.output / f"evaluation_{iteration:06d}.json"


def _reported_version(url: str) -> str | Exception | None:
    try:
        return weight_version(url)
    except (OSError, ValueError) as error:
        return error
