"""`gigpo-mega train --dry-run`: everything that is checked before a run starts, and what would run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from gigpo_mega.config import Config
from gigpo_mega.launch import rank_and_world
from gigpo_mega.planning.devices import DEVICES, Cluster
from gigpo_mega.planning.memory import Memory, whole
from gigpo_mega.planning.plan import kinds
from gigpo_mega.planning.speed import Workload
from gigpo_mega.preflight import Checked, check
from gigpo_mega.rollout.engines.command import Launch
from gigpo_mega.run.output import check_resume
from gigpo_mega.stack import Stack, decide
from gigpo_mega.tasks import Tasks, load_tasks

MIB = 1 << 20


def describe_run(cfg: Config) -> str:
    """Check `cfg`, load its tasks, and describe the run that it asks for; starts nothing.

    Tasks that a generator makes are made, and a model of the hub is downloaded but for its weights; `output`
    is not made. Raises UserError or EnvError as the run would, unless what is wrong shows only in use: a lock
    that another run holds, a checkpoint that is damaged.
    """
    stack = decide(cfg.stack, engine=not cfg.engine.urls)
    checked = check(cfg, stack, weights=False)
    resumed, _ = check_resume(cfg)
    data = cfg.environment.tasks.get("data")
    folders = [folder for folder in map(Path, [data] if data else []) if not folder.exists()]
    tasks = load_tasks(cfg)  # which may make them
    made = "".join(f", made in {folder}" for folder in folders if folder.exists())
    lines = _lines(checked, stack, tasks, made, resumed)
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def _lines(run: Checked, stack: Stack, tasks: Tasks, made: str, resumed: bool) -> Iterator[tuple[str, str]]:
    cfg, shape, (_, world) = run.cfg, run.shape, rank_and_world()
    rollout, parallel, batch = cfg.rollout, cfg.parallel, cfg.batch
    size = f"{whole(shape) / 1e6:.2f} M parameters"
    adapters = f", LoRA of rank {cfg.lora.rank}" if cfg.lora.rank else ""
    yield "model", f"{run.model}: {shape.family}, {size}, {cfg.model.dtype}{adapters}"
    yield "stack", f"{stack.name}, {stack.reason}"
    yield "layout", (
        f"{world} process(es): tensor {parallel.tensor} x pipeline {parallel.pipeline} x context "
        f"{parallel.context} x data {parallel.data(world)}"
    )
    panel = len({task.id for task in tasks.held_out})
    yield "tasks", (
        f"{len(tasks.training)} of {cfg.environment.name} ({cfg.environment.split}); panel of "
        f"{len(tasks.held_out)} episodes on {panel} tasks ({cfg.evaluation.split}){made}"
    )
    yield "iteration", (
        f"{rollout.groups} tasks x {rollout.group_size} episodes of <= {cfg.environment.max_steps} steps; "
        f"advantage {cfg.advantage.estimator}; {batch.rows_per_update or 'all'} rows per update"
    )
    yield "rollout", _rollout(cfg)
    where = "in the Ray cluster" if cfg.engine.placement == "separate" else "a node"
    servers = f"{Launch(stack).replicas(cfg.engine)} SGLang server(s) {where}, started by the run"
    yield "engine", ", ".join(cfg.engine.urls) or servers
    yield "memory", _memory(run, world)
    yield "output", f"{cfg.output}, {cfg.iterations} iterations" + (", resumed" if resumed else "")


def _rollout(cfg: Config) -> str:
    """Who plays, and how far ahead of the learner."""
    rollout, workers = cfg.rollout, cfg.environment.workers
    of_ray = ", actors of Ray" if rollout.pool == "ray" else ""
    players = f"{rollout.workers} workers{of_ray}" if rollout.workers > 1 else "the leader"
    held = f"agent {rollout.agent}" if rollout.agent else f"{workers} environment process(es)"
    held += of_ray if rollout.workers == 1 else ""
    ahead = f"{rollout.max_staleness} iteration(s) ahead of" if rollout.max_staleness else "in turn with"
    return f"{players} with {held}, {rollout.concurrency} episodes at once, {ahead} the learner"


def _memory(run: Checked, world: int) -> str:
    """MiB of the fullest learner rank by part, without the device's own runtime and without the engine."""
    cluster = Cluster(DEVICES["h100"], 1, world)  # no engine: nothing depends on the device
    fullest = kinds(run.shape, run.cfg, cluster, Workload.of(run.cfg))[0][0].memory
    parts = {f.name: getattr(fullest, f.name) / MIB for f in fields(Memory) if f.name != "runtime"}
    listed = ", ".join(f"{name} {mib:.1f}" for name, mib in parts.items() if mib)
    return f"{sum(parts.values()):.0f} MiB on the fullest rank, planned for a GPU: {listed}"
