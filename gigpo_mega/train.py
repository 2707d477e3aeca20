"""Train an agent: `python -m gigpo_mega.train configs/x.yaml --section.field value`, or the same under
torchrun.

An iteration plays a group of episodes of each drawn task, estimates advantages, updates the policy and
pushes its weights to the engine. The groups are on disk before they are learned from, the full state every
`checkpoint.every` iterations: `--resume` samples nothing twice and ends bit-equal to a run that was never
stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gigpo_mega import options
from gigpo_mega.algorithms.advantage import estimate
from gigpo_mega.config import Config
from gigpo_mega.control import Stop, shared
from gigpo_mega.errors import UserError, run_main
from gigpo_mega.host import Host
from gigpo_mega.learner import parallel
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.parallel import Layout
from gigpo_mega.learner.policy import LogprobMismatch, improve
from gigpo_mega.learner.update import Learner
from gigpo_mega.rollout.summary import advantage_metrics, rollout_metrics
from gigpo_mega.tasks import load_tasks
from gigpo_mega.telemetry.progress import stage
from gigpo_mega.types import RowTable
from gigpo_mega.weights import adapter
from gigpo_mega.weights import export as weights


def train(cfg: Config) -> None:
    """Run `cfg.steps` iterations; every rank of the launch calls this. Ctrl-C and SIGTERM save and stop."""
    model = _model_path(cfg)
    shape = ModelShape.from_hf(model)
    shape.check_layout(cfg.parallel)
    shape.check_lora(cfg.lora)
    layout = parallel.initialize(cfg.parallel, cfg.seed)
    training, held_out = shared(layout, lambda: load_tasks(cfg))  # the leader may generate them
    checkpoints = Checkpoints(cfg.output / "checkpoints", cfg.checkpoint)
    start = shared(layout, lambda: _open_output(cfg, checkpoints))
    learner = _build_learner(cfg, layout, shape, model)
    if start:
        checkpoints.load(learner, start)
    with Stop(layout) as stop, Host(cfg, layout, model, training, held_out, start) as host:
        try:
            for step in range(start, cfg.steps):
                iterate(cfg, learner, host, stop, step)
                checkpoints.poll(learner)
                if learner.iteration % cfg.checkpoint.every == 0 or learner.iteration == cfg.steps:
                    checkpoints.save(learner)
                    shared(layout, lambda: host.journal.forget(before=checkpoints.oldest() or 0))
            checkpoints.finish(learner)
            _evaluate(learner, host, stop)
        except KeyboardInterrupt:
            checkpoints.finish(learner)
            if (checkpoints.newest() or 0) != learner.iteration:
                checkpoints.save(learner)
                checkpoints.finish(learner)
            raise
    if cfg.checkpoint.export:
        weights.save(learner.policy, shape, layout, model, cfg.output / "policy")
        if cfg.lora.rank:
            adapter.save(learner.policy, shape, layout, cfg.lora, model, cfg.output / "adapter")


def iterate(cfg: Config, learner: Learner, host: Host, stop: Stop, step: int) -> None:
    """One iteration: groups, advantages, update, weights to the engine, metrics."""
    clock = _Clock()
    with clock.stage("evaluate"):
        if step == 0 or (cfg.evaluation.every and step % cfg.evaluation.every == 0):
            _evaluate(learner, host, stop)
    with clock.stage("push"):
        _push(learner, host)
    with clock.stage("rollout"):
        groups = shared(learner.layout, lambda: stop.run(lambda: host.groups(step)))
    with clock.stage("advantage"):
        rows = RowTable.from_groups(groups)
        advantages = estimate(rows, cfg.advantage)
    with clock.stage("update"), stage("update", None, "updates", quiet=not learner.layout.leader) as bar:
        try:
            stats = improve(learner, rows, advantages, cfg, step, lambda _done, _total: bar.advance())
        except LogprobMismatch:
            host.journal.drop(step)
            raise
    learner.iteration = step + 1
    metrics = rollout_metrics(groups) | advantage_metrics(rows, advantages) | stats | clock.metrics()
    shared(learner.layout, lambda: host.record(step, metrics, groups, advantages))


def _evaluate(learner: Learner, host: Host, stop: Stop) -> None:
    if shared(learner.layout, lambda: host.evaluated(learner.iteration)):
        return
    _push(learner, host)
    shared(learner.layout, lambda: stop.run(lambda: host.evaluate(learner.iteration)))


def _push(learner: Learner, host: Host) -> None:
    """Give the engine the learner's weights unless it has them; all ranks gather, the leader sends."""
    if shared(learner.layout, lambda: host.pushed == learner.iteration):
        return
    named = weights.export(learner.policy, learner.shape, learner.layout)
    if learner.layout.leader:
        host.push(named, learner.iteration)
    else:
        for _ in named:
            pass


def _build_learner(cfg: Config, layout: Layout, shape: ModelShape, model: Path) -> Learner:
    learner = Learner(cfg, shape, layout)
    weights.load(learner.policy, shape, layout, model)
    learner.refresh()
    if cfg.objective.kl_coef:
        learner.keep_reference()
    return learner


def _model_path(cfg: Config) -> Path:
    if cfg.model.path is None:
        raise UserError(
            "model.path is not set; give a Hugging Face directory, e.g. one made by gigpo_mega.coldstart"
        )
    return cfg.model.path


def _open_output(cfg: Config, checkpoints: Checkpoints) -> int:
    """The iteration to start from; raises UserError where `output` holds a run that was not to be resumed."""
    started = (cfg.output / "config.yaml").exists()
    if started and not cfg.resume:
        raise UserError(f"output: {cfg.output} holds a run already; choose another output or --resume")
    cfg.output.mkdir(parents=True, exist_ok=True)
    options.save(cfg, cfg.output / "config.yaml")
    return checkpoints.resumable() if cfg.resume else 0


class _Clock:
    """Seconds of each stage of an iteration."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """`time/<stage>` of all, and their sum as `time/total`; in seconds."""
        times = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        return times | {"time/total": sum(self._seconds.values())}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and train."""
    train(options.load(sys.argv[1:] if argv is None else argv, "gigpo_mega.train"))


if __name__ == "__main__":
    run_main(main)
