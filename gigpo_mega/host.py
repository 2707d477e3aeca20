"""The leader's side of a run: episodes in, metrics out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from envs.base import Task
from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.journal import Journal
from gigpo_mega.learner.parallel import Layout
from gigpo_mega.rollout.server import holds_weights
from gigpo_mega.rollout.session import RolloutSession
from gigpo_mega.rollout.summary import engine_metrics, evaluation_record
from gigpo_mega.tasks import TaskStream
from gigpo_mega.telemetry.metrics import MetricsWriter, record_episodes
from gigpo_mega.telemetry.report import write_report
from gigpo_mega.types import Advantages, Group
from gigpo_mega.weights.push import WeightPusher


class Host:
    """Talks to engine, environments, disk and people; a context manager that opens them on the leader alone.

    Every rank holds one, so that a run reads the same on all; its methods are called through
    `control.shared`.
    """

    def __init__(
        self,
        cfg: Config,
        layout: Layout,
        model: Path,
        training: Sequence[Task],
        held_out: Sequence[Task],
        start: int,
    ) -> None:
        self._cfg, self._layout, self._model, self._start = cfg, layout, model, start
        self._stream, self._held_out = TaskStream(training, cfg.seed), held_out
        self.journal = Journal(cfg.output / "groups")
        self._stack = ExitStack()
        self._collected: Mapping[str, float] = {}  # of the groups at hand, where they were played just now
        # A server of the user's holds whatever it held last.
        self._pushed = 0 if cfg.engine.url is None and holds_weights(model) else None

    def __enter__(self) -> Self:
        if self._layout.leader:
            with ExitStack() as stack:
                self._session = stack.enter_context(RolloutSession(self._cfg, self._model, self._cfg.output))
                self._pusher = WeightPusher(self._session.url, self._cfg.engine.bucket_mib)
                self._writer = MetricsWriter(self._cfg.output, self._start)
                stack.callback(self._writer.close)
                self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pushed(self) -> int | None:
        """The weight version the engine was last given; None where nobody knows."""
        return self._pushed

    def push(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give the engine `weights`; raises PushError where it does not report `version` afterwards."""
        self._pusher.push(weights, version)
        self._pushed = version

    def groups(self, step: int) -> tuple[Group, ...]:
        """The groups of iteration `step`: from the journal, or played now and kept there."""
        self._collected = {}
        if self.journal.has(step):
            return self.journal.read(step)
        rollout = self._cfg.rollout
        self._pusher.verify(step)
        tasks = self._stream.draw(step, rollout.groups)
        groups = self._session.collect(tasks, rollout.group_size, rollout.temperature, rollout.top_p)
        versions = {s.version for g in groups for t in g.trajectories for s in t.steps}
        if versions - {step}:
            raise UserError(
                f"the engine sampled iteration {step} with weight versions {sorted(versions)}; --resume"
            )
        self.journal.write(step, groups)
        self._collected = engine_metrics(self._session.stats)
        return groups

    def evaluated(self, step: int) -> bool:
        """True where the panel was played with the weights of iteration `step`."""
        return self._evaluation(step).exists()

    def evaluate(self, step: int) -> Mapping[str, Any]:
        """Play the held-out panel with the weights of iteration `step`, and keep the result as JSON."""
        path = self._evaluation(step)
        cfg = self._cfg.evaluation
        self._pusher.verify(step)
        groups = self._session.collect(self._held_out, 1, cfg.temperature, name="evaluate")
        record = evaluation_record(groups, step, cfg.temperature, cfg.split)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1))
        os.replace(partial, path)
        write_report(self._cfg.output)
        return record

    def record(
        self, step: int, metrics: Mapping[str, float], groups: Sequence[Group], advantages: Advantages
    ) -> None:
        """Write the iteration's metrics, its most telling group and the report."""
        record_episodes(self._cfg.output / "episodes.jsonl", step, groups, advantages)
        self._writer.write(step, {**metrics, **self._collected})
        write_report(self._cfg.output)

    def _evaluation(self, step: int) -> Path:
        return self._cfg.output / f"evaluation_{step:06d}.json"
