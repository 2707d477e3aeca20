"""`Run`: a training run as every rank of the launch sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar, cast

import torch

from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.hf_config import holds_weights
from gigpo_mega.launch import leads_node
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.update import Learned, UnusableGroups
from gigpo_mega.preflight import check
from gigpo_mega.rollout.engines.base import EngineLost
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.rollout.local import try_environment
from gigpo_mega.run.engines import NodeEngines
from gigpo_mega.run.leader import Leader
from gigpo_mega.run.output import check_resume, lock, open_output, record_start
from gigpo_mega.run.ranks import Signals, agree, leader_only, meet, on_leader, on_nodes
from gigpo_mega.run.recorder import Recorder
from gigpo_mega.run.replayer import Replayer
from gigpo_mega.shape import ModelShape
from gigpo_mega.stack import Stack
from gigpo_mega.storage.journal import Journal
from gigpo_mega.tasks import Tasks, load_tasks
from gigpo_mega.telemetry.metrics import peak_memory
from gigpo_mega.telemetry.timeline import Timeline
from gigpo_mega.types import Advantages, Group, RowTable
from gigpo_mega.weights import adapter, live
from gigpo_mega.weights.transport.base import PushError
from gigpo_mega.weights.transport.broadcast import prepare_nccl

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Recorder)


class Run:
    """One training run; every rank makes one and calls its methods together.

    Making it joins the process group, loads or resumes the learner and, on the leader, starts environments
    and engine. It evaluates and saves by itself; leaving it on Ctrl-C or SIGTERM saves first. With groups
    that were `recorded` before there are neither environments nor engine, and no evaluation. Raises
    UserError, on every rank, for whatever the run could not start with.
    """

    def __init__(self, cfg: Config, stack: Stack, recorded: Journal | None = None) -> None:
        checked = check(cfg, stack)
        self._cfg, self._stack, self._model, shape = cfg, stack, checked.model, checked.shape
        if stack.cuda and cfg.weights.transport == "broadcast":
            prepare_nccl()
        layout = layouts.initialize(cfg.parallel, cfg.seed)
        agree(layout, stack, self._model)
        self._plays = recorded is None
        source = recorded or on_leader(layout, load_tasks, cfg)  # which may generate them
        self._checkpoints = Checkpoints(cfg.output / "checkpoints", cfg.checkpoint)
        self._lock = leader_only(layout, lock, cfg.output)
        held, changed = on_leader(layout, check_resume, cfg)
        self._start = self._checkpoints.resumable(layout) if held else 0
        on_leader(layout, open_output, cfg, changed, self._start)
        on_leader(layout, record_start, cfg.output, self._start, stack, layout.world)
        self._now = self._start  # the iteration under way
        self._lends_memory = stack.cuda and cfg.lends_memory
        self._stages = Timeline(on=True)  # of the iteration
        self._push_metrics: Mapping[str, float] = {}  # of this iteration's push, on ranks that send
        # What a server of the user's holds is unknown.
        self._pushed = None if cfg.engine.urls or not holds_weights(self._model) else 0
        launch = Launch(stack, cfg.model.dtype, cfg.seed, cfg.rollout.concurrency, self._lends_memory)
        elsewhere = bool(cfg.engine.urls) or cfg.engine.placement == "separate"
        hosts_engines = self._plays and leads_node() and (layout.leader or not elsewhere)
        self._engines = NodeEngines(cfg, launch, self._model, shape) if hosts_engines else None
        # A server beside the learner on a GPU takes its share of the memory that the learner has left.
        self._shares_gpu = stack.cuda and not elsewhere
        try:
            if not isinstance(source, Journal):
                on_leader(layout, try_environment, cfg, source.training[0])
                if not self._shares_gpu:
                    self._launch_engines(layout)
            self.learner = _learner(cfg, shape, layout, self._model)
            if self._start:
                self._checkpoints.load(self.learner, self._start)
            self._signals = Signals(layout)
            if self._plays and self._shares_gpu:
                self._launch_engines(layout)
            self._leader = self._open(source)
        except BaseException:
            self._close_engines()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is KeyboardInterrupt:
                self._checkpoints.finish(self.learner)
                # The leader's answer: a rank may see a shared folder as it was a moment ago.
                if (self.once(self._checkpoints.newest) or 0) != self.learner.iteration:
                    self._save()
                    self._checkpoints.finish(self.learner)
            elif isinstance(error, UnusableGroups):
                self._checkpoints.finish(self.learner)  # one that is being written is of an iteration before
                self._on_leader(Recorder.set_aside, self._now)
        finally:
            if self._leader is not None:
                self._leader.close()
            self._close_engines()
            if self._lock is not None:
                self._lock.close()
            self._signals.restore()

    def iterations(self) -> Iterator[int]:
        """The iterations that are left; evaluates the panel and saves checkpoints when they are due.

        After the last one the panel is played and, if `checkpoint.export` asks for it, the policy is written
        as a Hugging Face directory.
        """
        panel = self._cfg.evaluation
        for iteration in range(self._start, self._cfg.iterations):
            self._now, self._push_metrics = iteration, {}
            self._stages.take()
            with self.stage("evaluate"):
                if panel.before if iteration == 0 else panel.every and iteration % panel.every == 0:
                    self._evaluate()
            yield iteration
            self._checkpoints.poll(self.learner)
            done = self.learner.iteration
            if done % self._cfg.checkpoint.every == 0 or done == self._cfg.iterations:
                self._save()
        self._checkpoints.finish(self.learner)
        self._evaluate()
        self._export()

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a part of the iteration; `record` writes its seconds as `time/<name>`."""
        return self._stages.span("learner", name)

    def push_weights(self) -> None:
        """Give the engines the learner's weights unless they have them; those that failed are revived first.

        All get them again if one is lost in a push. Raises PushError if a push fails though none is lost, and
        UserError past `engine.restarts`.
        """
        if not self._plays:
            return
        with self._held_engines():
            self._push_until_taken()

    def _push_until_taken(self) -> None:
        """Push to engines that are all alive; those that were lost are revived before."""
        refused: PushError | None = None
        for _ in range(self._cfg.engine.restarts + 1):
            lost = self._on_leader(Leader.lost_engines)
            if refused is not None and not lost:
                raise refused
            if not lost and self._pushed == self.learner.iteration:
                return
            self._make_room()
            if lost:
                self._revive(lost)
            refused = self._push_once()
            if refused is None:
                self._pushed = self.learner.iteration
                self._on_leader(Leader.readmit_engines, self._urls)
                return
        assert refused is not None
        raise refused

    @contextmanager
    def _held_engines(self) -> Iterator[None]:
        """A block in which engines that play ahead may be paused for as long as a push takes."""
        busy = self._cfg.rollout.max_staleness > 0
        if busy:
            self._on_leader(Leader.hold_engines, True)
        yield
        if busy:
            self._on_leader(Leader.hold_engines, False)

    def collect(self, iteration: int) -> tuple[Group, ...]:
        """`rollout.group_size` episodes of each of the iteration's tasks on the leader, none on other ranks.

        If no engine is left they are revived, and the episodes that were under way are played again.
        """
        return self._played(Recorder.groups, iteration) or ()

    def once(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `act` returns on the leader, on every rank: computed once, and the same whatever it does."""
        return on_leader(self.learner.layout, act, *args, **kwargs)

    def record(
        self,
        iteration: int,
        groups: Sequence[Group],
        rows: RowTable,
        advantages: Advantages,
        learned: Learned,
    ) -> None:
        """Write the metrics of `iteration`, its most telling group, the learner's log-probabilities, and the
        report."""
        stages = self._stages.take()
        times = {f"time/{stage.name}": stage.seconds for stage in stages}
        times["time/total"] = sum(times.values())
        memory = {"memory/learner_gib": peak_memory(self._stack.cuda)}
        measured = {**learned.metrics, **times, **memory, **self._push_metrics}
        learned = replace(learned, metrics=measured)
        self._on_leader(Recorder.record, iteration, groups, rows, advantages, learned, stages)

    def _open(self, source: Tasks | Journal) -> Recorder | None:
        """The leader's side, on the leader: it plays the tasks, or reads the groups, that `source` has."""
        cfg, layout, signals = self._cfg, self.learner.layout, self._signals
        if isinstance(source, Journal):
            return leader_only(layout, Replayer, cfg, source, self._start, signals)
        on_leader(layout, signals.interrupting, _wait, self._engines, self._urls)
        lends = self._lends_memory
        return leader_only(layout, Leader, cfg, self._model, source, self._start, signals, self._urls, lends)

    def _launch_engines(self, layout: layouts.Layout) -> None:
        """Launch the engines of all nodes, without waiting for them."""
        found = on_nodes(layout, _launch, self._engines)
        self._urls = [url for node in found for url in node]

    def _push_once(self) -> PushError | None:
        """Push; why the engines of a node did not take the weights, on every rank, or None.

        All ranks gather, to the end even if a push has failed before, and the first of each node sends.
        """
        learner, failure = self.learner, None
        weights = live.export(learner.policy, learner.shape, learner.layout)
        if self._engines is not None:
            try:
                self._push_metrics = self._engines.push(weights, learner.iteration).metrics
            except PushError as error:
                failure = error.with_traceback(None)
        for _ in weights:
            pass
        found = on_nodes(learner.layout, lambda: failure)
        return next((failed for failed in found if failed is not None), None)

    def _revive(self, lost: Mapping[str, str]) -> None:
        """Launch engines again, on whatever node; returns when they are healthy.

        One that fails while it starts is started once more, and only that; UserError past `engine.restarts`.
        Those of `engine.url` are waited for once.
        """
        layout, engines = self.learner.layout, self._engines
        reasons, urls = dict(lost), list(lost)
        while reasons:
            if layout.leader:
                for url, reason in reasons.items():
                    does = "is waited for" if self._cfg.engine.urls else "is started again"
                    sys.stderr.write(f"engine {url} {does}: {reason}\n")
            moved = dict[str, str]()
            for of_node in on_nodes(layout, _relaunch, engines, list(reasons)):
                moved |= of_node
            now = [moved.get(url, url) for url in self._urls]
            # Also one that has moved by itself, as its node was lost meanwhile.
            started = {moved.get(url, url) for url in urls} | set(now) - set(self._urls)
            self._urls, urls = now, [url for url in now if url in started]
            try:
                on_leader(layout, self._signals.interrupting, _wait, engines, urls)
                reasons = {}
            except EngineLost as error:
                if self._cfg.engine.urls:
                    raise UserError(f"{error}; start it, then --resume") from None
                failed = [error.url] if error.url in urls else urls
                reasons = dict.fromkeys(failed, str(error))

    def _close_engines(self) -> None:
        if self._engines is not None:
            self._engines.close()

    def _played(self, act: Callable[[R, int], T], iteration: int) -> T | None:
        """What `act(leader, iteration)` returns after playing episodes; None on the other ranks."""
        layout, leader = self.learner.layout, cast(R, self._leader)
        for _ in range(self._cfg.engine.restarts):
            self._make_room()
            try:
                return leader_only(layout, act, leader, iteration)
            except EngineLost:
                self.push_weights()  # which revives them
        self._make_room()
        return leader_only(layout, act, leader, iteration)

    def _on_leader(self, act: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `act(leader, ...)` returns, on every rank; only a run that plays has a `Leader`."""
        leader = cast(R, self._leader)  # None on the other ranks, which do not call `act`
        return self.once(act, leader, *args, **kwargs)

    def _evaluate(self) -> None:
        iteration = self.learner.iteration
        if self._plays and not self._on_leader(Leader.has_evaluated, iteration):
            self.push_weights()
            self._played(Leader.evaluate, iteration)

    def _make_room(self) -> None:
        """Give back what torch keeps of the last update, on every rank: an engine may take its place next.

        As it starts again, opens what is pushed, or takes its KV cache.
        """
        if self._shares_gpu:
            torch.cuda.empty_cache()
            meet(self.learner.layout)

    def _save(self) -> None:
        self._checkpoints.save(self.learner)
        self._on_leader(Recorder.forget_groups, self._checkpoints.oldest() or 0)

    def _export(self) -> None:
        cfg, learner = self._cfg, self.learner
        if cfg.checkpoint.export:
            live.save(learner.policy, learner.shape, learner.layout, self._model, cfg.output / "policy")
            if cfg.lora.rank:
                adapter.save(
                    learner.policy, learner.shape, learner.layout, cfg.lora, self._model,
                    cfg.output / "adapter",
                )  # fmt: skip


def _launch(engines: NodeEngines | None) -> list[str]:
    return engines.launch() if engines else []


def _relaunch(engines: NodeEngines | None, urls: Sequence[str]) -> dict[str, str]:
    return engines.relaunch(urls) if engines else {}


def _wait(engines: NodeEngines | None, urls: Sequence[str]) -> None:
    if engines:
        engines.wait(urls)


def _learner(cfg: Config, shape: ModelShape, layout: layouts.Layout, model: Path) -> Learner:
    learner = Learner(cfg, shape, layout, empty=True)
    live.load(learner.policy, shape, layout, model)
    learner.refresh()
    if layout.leader:
        sys.stderr.write(f"{learner.stack.described(learner.optimizer)}\n")
    if cfg.objective.kl_coef:
        learner.keep_reference()
    return learner
