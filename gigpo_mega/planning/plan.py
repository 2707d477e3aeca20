"""A plan: what every kind of GPU of a run holds, whether that fits, and changes that make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.planning.devices import GIB, Cluster
from gigpo_mega.planning.memory import USABLE, Engine, Memory, longest_row, on_rank, separate, servers
from gigpo_mega.planning.speed import Seconds, Workload, micro_batches, seconds
from gigpo_mega.shape import ModelShape, check_world


@dataclass(frozen=True, slots=True)
class Kind:
    """GPUs that hold the same."""

    name: str
    count: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Plan:
    """Memory and time of a run."""

    cluster: Cluster
    data: int  # data-parallel size
    microbatches: int  # of a data-parallel rank in one update
    kinds: tuple[Kind, ...]  # the fullest first
    engine: Engine | None
    limit: float  # bytes that a GPU may hold
    problems: tuple[str, ...]  # why it cannot run; empty if it fits
    seconds: Seconds

    @property
    def fits(self) -> bool:
        """Whether the run can start and does not run out of memory."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change, and the plan with it, which fits."""

    flags: tuple[str, ...]  # as `gigpo-mega train` and `gigpo-mega plan` accept them
    plan: Plan


def make(shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload | None = None) -> Plan:
    """The plan of `cfg` for a model of `shape`; raises UserError for an impossible layout."""
    check_world(cfg.parallel, cluster.world)
    shape.check_layout(cfg.parallel)
    shape.check_lora(cfg.lora)
    work = work or Workload.of(cfg)
    found, engine = kinds(shape, cfg, cluster, work, servers(cfg, cluster) * cfg.engine.tensor)
    if apart := separate(shape, cfg, cluster.device):
        memory, engine = apart
        found = fullest_first([*found, Kind("engine", engine.count * engine.gpus, memory)])
    data, limit = cfg.parallel.data(cluster.world), USABLE * cluster.device.memory
    return Plan(
        cluster=cluster,
        data=data,
        microbatches=micro_batches(cfg, work, data),
        kinds=found,
        engine=engine,
        limit=limit,
        problems=tuple(problems(cfg, found, engine, limit)),
        seconds=seconds(shape, cfg, cluster, work, engine),
    )


def kinds(
    shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload, serving: int = 0
) -> tuple[tuple[Kind, ...], Engine | None]:
    """The kinds of GPUs, the fullest first, and what runs on the first `serving` GPUs of each node."""
    pipeline, data = cfg.parallel.pipeline, cfg.parallel.data(cluster.world)
    each = cluster.world // pipeline  # ranks of a stage, which are consecutive in megatron's order
    found: list[Kind] = []
    engine: Engine | None = None
    for stage in range(pipeline):
        name = f"stage {stage}" if pipeline > 1 else "learner"
        first, after = (cluster.serving(ranks, serving) for ranks in (stage * each, (stage + 1) * each))
        shared = after - first
        for server, count in ((True, shared), (False, each - shared)):
            if count:
                memory, here = on_rank(
                    shape,
                    cfg,
                    cluster,
                    stage=stage,
                    replicas=data * cfg.parallel.context,
                    microbatches=micro_batches(cfg, work, data),
                    server=server,
                )
                engine = here or engine
                found.append(Kind(f"{name} + engine" if server else name, count, memory))
    return fullest_first(found), engine


def fullest_first(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """`kinds` by memory, the most first."""
    return tuple(sorted(kinds, key=lambda kind: -kind.memory.total))


def problems(cfg: Config, kinds: Sequence[Kind], engine: Engine | None, limit: float) -> Iterator[str]:
    """Why a run cannot start, one line each."""
    for kind in kinds:
        if kind.memory.total > limit:
            yield f"{kind.name}: {kind.memory.total / GIB:.1f} of {limit / GIB:.1f} GiB"
    if engine is not None and engine.tokens < longest_row(cfg):
        yield (
            f"engine: its cache holds {engine.tokens} tokens, less than one row of "
            f"{longest_row(cfg)} (engine.memory_fraction {cfg.engine.memory_fraction:g})"
        )


def suggest(
    shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload | None = None, count: int = 3
) -> list[Suggestion]:
    """At most `count` changes that make `cfg` fit, the fastest first: one setting, or else two or three."""
    work = work or Workload.of(cfg)
    candidates = list(changes(cfg, cluster))
    for size in (1, 2, 3):
        found: list[Suggestion] = []
        for chosen in combinations(candidates, size):
            merged = {name: value for change in chosen for name, value in change.items()}
            if len(merged) < sum(map(len, chosen)):
                continue  # two of them set the same field
            try:
                plan = make(shape, *_changed(cfg, cluster, merged), work)
            except (UserError, ValueError):  # fields contradict each other, or do not divide model or world
                continue
            if plan.fits:
                pairs = ((name.removeprefix("--"), str(value).lower()) for name, value in merged.items())
                found.append(Suggestion(tuple(f"--{name} {value}" for name, value in pairs), plan))
        if found:
            return sorted(found, key=lambda s: s.plan.seconds.total)[:count]
    return []


def changes(cfg: Config, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Changes that save memory and do not change the algorithm, each as {field or option: value}."""
    yield {"parallel.distributed_optimizer": True}
    yield {"parallel.sequence_parallel": True}
    yield {"parallel.recompute": "full"}
    budget = cfg.batch.microbatch_tokens
    while budget // 2 >= longest_row(cfg):
        budget //= 2
        yield {"batch.microbatch_tokens": budget}
    for tensor in (2, 4, 8):
        if cfg.parallel.tensor < tensor <= cluster.per_node:
            yield {"parallel.tensor": tensor, "parallel.sequence_parallel": True}
    for name in ("pipeline", "context"):
        yield {f"parallel.{name}": 2 * getattr(cfg.parallel, name)}
    if cfg.engine.url is None:
        yield from ({"engine.memory_fraction": fraction} for fraction in (0.2, 0.3, 0.4, 0.5))
    yield from ({"--nodes": cluster.nodes * factor} for factor in (2, 4))


def _changed(cfg: Config, cluster: Cluster, change: dict[str, Any]) -> tuple[Config, Cluster]:
    for name, value in change.items():
        section, _, field = name.partition(".")
        if field:
            cfg = replace(cfg, **{section: replace(getattr(cfg, section), **{field: value})})
        else:
            cluster = replace(cluster, nodes=value)
    return cfg, cluster
