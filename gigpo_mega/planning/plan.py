"""A plan: what every kind of GPU of a run holds, whether that fits, and the knobs that make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.parallel import check_layout
from gigpo_mega.planning.devices import Cluster
from gigpo_mega.planning.memory import USABLE, Engine, Memory, flag, longest_row, on_rank
from gigpo_mega.planning.speed import Seconds, Workload, micro_batches, seconds


@dataclass(frozen=True, slots=True)
class Kind:
    """GPUs that hold the same."""

    name: str
    count: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run takes."""

    cluster: Cluster
    data: int  # data-parallel size
    microbatches: int  # of a data-parallel rank in one update
    kinds: tuple[Kind, ...]  # the fullest first
    engine: Engine | None
    limit: float  # bytes that a GPU may hold
    problems: tuple[str, ...]  # why it cannot run; empty where it fits
    seconds: Seconds

    @property
    def fits(self) -> bool:
        """Whether the run can start and not run out of memory."""
        return not self.problems


def make(shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload | None = None) -> Plan:
    """The plan of `cfg` for a model of `shape`; raises UserError for a layout that is impossible."""
    check_layout(cfg.parallel, cluster.world)
    shape.check_layout(cfg.parallel)
    shape.check_lora(cfg.lora)
    work = work or Workload.of(cfg)
    data = cluster.world // (cfg.parallel.tensor * cfg.parallel.pipeline * cfg.parallel.context)
    microbatches = micro_batches(cfg, work, data)
    servers = _engine_ranks(shape, cfg, cluster)
    kinds: dict[tuple[int, bool], Kind] = {}
    beside: Engine | None = None
    for rank in range(cluster.world):
        stage = rank * cfg.parallel.pipeline // cluster.world  # megatron's order: stages lie farthest apart
        server = rank in servers
        before = kinds.get((stage, server))
        if before is None:
            memory, found = on_rank(
                shape,
                cfg,
                cluster,
                stage=stage,
                replicas=data * cfg.parallel.context,
                microbatches=microbatches,
                server=server,
            )
            beside = found or beside
            before = Kind(_name(stage, cfg.parallel.pipeline, server), 0, memory)
        kinds[stage, server] = replace(before, count=before.count + 1)
    fullest_first = tuple(sorted(kinds.values(), key=lambda kind: -kind.memory.total))
    limit = USABLE * cluster.device.memory
    return Plan(
        cluster=cluster,
        data=data,
        microbatches=microbatches,
        kinds=fullest_first,
        engine=beside,
        limit=limit,
        problems=tuple(_problems(cfg, fullest_first, beside, limit)),
        seconds=seconds(shape, cfg, cluster, work, beside),
    )


def _engine_ranks(shape: ModelShape, cfg: Config, cluster: Cluster) -> range:
    if cfg.engine.url is not None:
        return range(0)
    tensor = flag(cfg.engine.arguments, ("--tp-size", "--tp", "--tensor-parallel-size"))
    if shape.heads % tensor or tensor > cluster.per_node:
        raise UserError(
            f"engine.arguments: --tp-size {tensor} must divide the model's {shape.heads} attention heads "
            f"and be at most the {cluster.per_node} GPUs of a node"
        )
    return range(tensor)


def _name(stage: int, stages: int, server: bool) -> str:
    place = f"stage {stage}" if stages > 1 else "learner"
    return f"{place} + engine" if server else place


def _problems(cfg: Config, kinds: tuple[Kind, ...], engine: Engine | None, limit: float) -> Iterator[str]:
    for kind in kinds:
        if kind.memory.total > limit:
            yield f"{kind.name}: {_gib(kind.memory.total)} of {_gib(limit)} GiB"
    if engine is not None and engine.tokens < longest_row(cfg):
        yield (
            f"engine: its cache holds {engine.tokens} tokens, less than one row of "
            f"{longest_row(cfg)} (engine.memory_fraction {cfg.engine.memory_fraction:g})"
        )


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.1f}"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change that was planned anew and fits."""

    flags: tuple[str, ...]  # as train.py and plan.py take them
    plan: Plan


def suggest(
    shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload | None = None, count: int = 3
) -> list[Suggestion]:
    """Changes that make `cfg` fit, the fastest first: one knob where that is enough, else two or three."""
    work = work or Workload.of(cfg)
    knobs = list(_knobs(cfg, cluster))
    for size in (1, 2, 3):
        found = [
            Suggestion(_flags(merged), plan)
            for chosen in combinations(knobs, size)
            if (merged := _merged(chosen)) is not None
            and (plan := _attempt(shape, cfg, cluster, work, merged)) is not None
        ]
        if found:
            return sorted(found, key=lambda s: s.plan.seconds.total)[:count]
    return []


_SWITCHES: dict[str, Any] = {
    "distributed_optimizer": True,
    "sequence_parallel": True,
    "recompute": "full",
    "offload_optimizer": 1.0,
}


def _knobs(cfg: Config, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Changes that save memory and leave the algorithm alone."""
    yield from ({"parallel." + name: value} for name, value in _SWITCHES.items())
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


def _merged(chosen: tuple[dict[str, Any], ...]) -> dict[str, Any] | None:
    """The changes as one, or None where two set the same field."""
    names = [name for knob in chosen for name in knob]
    return {k: v for knob in chosen for k, v in knob.items()} if len(set(names)) == len(names) else None


def _attempt(
    shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload, changes: Mapping[str, Any]
) -> Plan | None:
    try:
        for name, value in changes.items():
            section, _, field = name.partition(".")
            if field:
                cfg = replace(cfg, **{section: replace(getattr(cfg, section), **{field: value})})
        plan = make(shape, cfg, replace(cluster, nodes=changes.get("--nodes", cluster.nodes)), work)
    except (UserError, ValueError):  # fields that contradict each other, or do not divide model or world
        return None
    return plan if plan.fits else None


def _flags(changes: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"--{name.removeprefix('--')} {str(value).lower()}" for name, value in changes.items())
