"""What a run reads and writes on the leader: groups to learn from, metrics and the report."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.learner.update import Learned
from gigpo_mega.rollout.quota import learned_from
from gigpo_mega.rollout.summary import (
    advantage_metrics,
    penalty_warning,
    rollout_metrics,
    staleness_metrics,
)
from gigpo_mega.run.ranks import Signals
from gigpo_mega.storage.files import mark_latest
from gigpo_mega.storage.journal import Journal
from gigpo_mega.telemetry import timeline
from gigpo_mega.telemetry.loggers import open_loggers
from gigpo_mega.telemetry.metrics import MetricsWriter, print_summary, record_episodes
from gigpo_mega.telemetry.report.build import write_report
from gigpo_mega.telemetry.timeline import Span
from gigpo_mega.types import Advantages, Float32, Group, RowTable


class Recorder(ABC):
    """The folder of a run, on the one rank that uses it; where its groups come from is the subclass's."""

    def __init__(self, cfg: Config, start: int, signals: Signals) -> None:
        self._cfg, self._signals = cfg, signals
        self._journal = Journal(cfg.output / "groups")
        self._warned = False  # of penalties, once a run
        self._finished: Sequence[Group] = ()  # of this iteration, those that are not learned from too
        self._played: Mapping[str, float] = {}  # what the groups of this iteration cost; empty if read back
        self._seconds: deque[float] = deque(maxlen=10)  # of the newest iterations
        mark_latest(cfg.output)
        self._writer = MetricsWriter(cfg.output, open_loggers(cfg, start), start)

    def close(self) -> None:
        """Finish the metrics."""
        self._writer.close()

    def groups(self, iteration: int) -> tuple[Group, ...]:
        """The groups of `iteration` to learn from: from the journal, which may get them now."""
        self._signals.check()
        self._played = {}
        if not self._journal.has(iteration):
            self._sample(iteration)
        self._finished = self._journal.read(iteration)
        if other := set[int]().union(*(self._unfit(group, iteration) for group in self._finished)):
            raise UserError(
                f"the groups of iteration {iteration} were sampled with weight versions {sorted(other)}; "
                f"rollout.max_staleness is {self._cfg.rollout.max_staleness}"
            )
        return tuple(group for group in self._finished if learned_from(group, self._cfg.rollout))

    def _unfit(self, group: Group, iteration: int) -> set[int]:
        """The weight versions of `group` that are too old to be learned from in `iteration`, or too new."""
        oldest = iteration - self._cfg.rollout.max_staleness
        return versions(group) - set(range(oldest, iteration + 1))

    @abstractmethod
    def _sample(self, iteration: int) -> None:
        """Finish `iteration` in the journal."""

    def _ran(self) -> Sequence[Span]:
        """What ran in this iteration, apart from its stages."""
        return ()

    def set_aside(self, iteration: int) -> None:
        """Keep the groups of `iteration` from being learned from; a resumed run samples them again."""
        self._journal.set_aside(iteration)

    def forget_groups(self, before: int) -> None:
        """Drop groups before `before`, which no resume needs, beyond `checkpoint.groups_gib`."""
        gib = self._cfg.checkpoint.groups_gib
        self._journal.forget(before, None if gib is None else gib * 2**30)

    def record(
        self,
        iteration: int,
        groups: Sequence[Group],
        rows: RowTable,
        advantages: Advantages,
        learned: Learned,
        stages: Sequence[Span],
    ) -> None:
        """Write the metrics of `iteration`, with those `learned`, its most telling group and the report.

        The learner's log-probabilities go beside the groups; if the run keeps a timeline, that too is
        written: of `stages`, and of what ran in them.

        Raises UserError if the disk refuses; a report that cannot be drawn is no reason to stop.
        """
        estimated = advantage_metrics(rows, advantages, self._cfg.advantage)
        metrics = {**rollout_metrics(self._finished), **estimated, **learned.metrics, **self._played}
        oldest = self._cfg.rollout.max_staleness
        if oldest:
            metrics |= staleness_metrics(self._finished, iteration, oldest)
        if self._played:  # groups that were read back took no time
            seconds = metrics["time/total" if oldest else "time/rollout"]
            metrics["rollout/tokens_per_second"] = metrics["rollout/tokens"] / seconds
        assert learned.logprobs is not None, "only the leader records"
        try:
            self._journal.keep_learner(iteration, self._of_all(learned.logprobs))
            record_episodes(self._cfg.output / "episodes.jsonl", iteration, groups, advantages)
            self._writer.write(iteration, metrics)
            if self._cfg.telemetry.timeline:
                path = self._cfg.output / "timeline" / f"{iteration:06d}.json.gz"
                timeline.write(path, [*stages, *self._ran()])
        except OSError as error:
            raise UserError(
                f"output: cannot record iteration {iteration} in {self._cfg.output}: {error}; free space, "
                "then --resume"
            ) from None
        total = self._cfg.iterations
        self._seconds.append(metrics["time/total"])
        left = float(np.mean(self._seconds)) * (total - iteration - 1)
        print_summary(f"{iteration + 1}/{total}", metrics, left)
        self._report()
        if not self._warned and (warning := penalty_warning(metrics, self._cfg.advantage)):
            self._warned = True
            sys.stderr.write(f"{warning}\n")

    def _of_all(self, logprobs: Float32) -> Float32:
        """`logprobs` of the groups that are learned from, with NaN for the tokens of the others."""
        parts, start = list[Float32](), 0
        for group in self._finished:
            size = sum(len(step.response_ids) for t in group.trajectories for step in t.steps)
            if learned_from(group, self._cfg.rollout):
                parts.append(logprobs[start : start + size])
                start += size
            else:
                parts.append(np.full(size, np.nan, dtype=np.float32))
        assert start == len(logprobs), "these are not the groups that were learned from"
        return np.concatenate(parts) if parts else logprobs

    def _report(self) -> None:
        try:
            write_report(self._cfg.output)
        except Exception as error:  # whatever the files hold, training goes on
            sys.stderr.write(f"no report: {type(error).__name__}: {error}\n")


def versions(group: Group) -> set[int]:
    """The weight versions that sampled `group`."""
    steps = [step for trajectory in group.trajectories for step in trajectory.steps]
    return {version for step in steps for version in np.unique(step.versions).tolist()}
