"""Seconds of an iteration: floating-point operations over an assumed utilization, bytes over link speeds.

Utilization and lengths are assumptions (`Workload`), so the estimate is for choosing a layout only.
"""

from __future__ import annotations

from dataclasses import dataclass

from gigpo_mega.config import Config
from gigpo_mega.planning.devices import Cluster
from gigpo_mega.planning.memory import FLOAT32, Engine, longest_row, trained, whole, width
from gigpo_mega.shape import ModelShape

DECODE_OVERHEAD = 3e-3  # seconds per decoded token that the GPU waits for scheduler and sampling
BUCKET_OVERHEAD = 1e-2  # seconds of a request that pushes a bucket of weights


@dataclass(frozen=True, slots=True)
class Workload:
    """Assumptions about episodes and hardware."""

    episode_steps: float  # on average, as the next two
    prompt_tokens: float
    response_tokens: float
    mfu: float = 0.4  # of the GPU's peak, in the learner's and the engine's large products
    bandwidth: float = 0.6  # of the memory's peak, in decoding

    @classmethod
    def of(cls, cfg: Config) -> Workload:
        """Assume half of every limit in `cfg`."""
        rollout = cfg.rollout
        return cls(
            cfg.environment.max_steps / 2, rollout.max_prompt_tokens / 2, rollout.max_response_tokens / 2
        )


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of the parts of an iteration."""

    push: float  # weights to the engine
    prefill: float
    decode: float
    score: float  # log-probabilities of the old and the reference policy
    update: float  # forward and backward
    synchronize: float  # gradients and parameters over data-parallel ranks, unless overlapped
    ahead: bool  # engines on GPUs of their own play the next iteration while the learner learns from this one

    @property
    def total(self) -> float:
        """The sum, or with engines `ahead` the longer of rollout and learning, and the push."""
        rollout, learning = self.prefill + self.decode, self.score + self.update + self.synchronize
        return self.push + (max(rollout, learning) if self.ahead else rollout + learning)


def rows(cfg: Config, work: Workload) -> float:
    """Rows of an iteration."""
    return cfg.rollout.groups * cfg.rollout.group_size * work.episode_steps


def updates(cfg: Config, work: Workload) -> int:
    """Optimizer updates of an iteration."""
    per_epoch = max(1, round(rows(cfg, work) / cfg.batch.rows_per_update)) if cfg.batch.rows_per_update else 1
    return per_epoch * cfg.batch.epochs


def micro_batches(cfg: Config, work: Workload, data: int) -> int:
    """Micro-batches of a data-parallel rank in one update."""
    per_update = rows(cfg, work) * cfg.batch.epochs / updates(cfg, work)
    mean = work.prompt_tokens + work.response_tokens if cfg.batch.packed else longest_row(cfg)
    budget = max(cfg.batch.microbatch_tokens, longest_row(cfg))
    chunks = cfg.parallel.pipeline if cfg.parallel.virtual_pipeline > 1 else 1
    return -(-max(1, round(per_update * mean / data)) // budget // chunks) * chunks


def seconds(
    shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload, engine: Engine | None
) -> Seconds:
    """The estimate; without an `engine` that the run launches, the rollout takes no time."""
    data = cfg.parallel.data(cluster.world)
    bubble = (cfg.parallel.pipeline - 1) / (cfg.parallel.virtual_pipeline * micro_batches(cfg, work, data))
    rate = cluster.world * _rate(cfg, cluster, work)
    tokens = work.prompt_tokens + work.response_tokens
    cost = shape.cost.token * tokens + shape.cost.pair * tokens**2
    cost += shape.cost.response * work.response_tokens
    forward = rows(cfg, work) * 2 * cost / rate * (1 + bubble)  # a multiply-add counts two
    scored = (cfg.objective.old_logprob == "learner") + bool(cfg.objective.kl_coef)
    # A backward pass counts two, one of them for gradients of weights.
    passes = 3 + (cfg.parallel.recompute == "full") - (cfg.lora.rank is not None)
    prefill, decode = _rollout(shape, cfg, cluster, work, engine) if engine else (0.0, 0.0)
    return Seconds(
        push=_push(shape, cfg, cluster),
        prefill=prefill,
        decode=decode,
        score=scored * forward,
        update=passes * cfg.batch.epochs * forward,
        synchronize=_synchronize(shape, cfg, cluster, data) * updates(cfg, work),
        ahead=_separate(cfg) and cfg.rollout.max_staleness > 0,
    )


def _separate(cfg: Config) -> bool:
    return cfg.engine.placement == "separate"


def _rate(cfg: Config, cluster: Cluster, work: Workload) -> float:
    device = cluster.device
    return work.mfu * (device.flops if cfg.model.dtype == "bfloat16" else device.flops_float32)


def _rollout(
    shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload, engine: Engine
) -> tuple[float, float]:
    """Seconds of prefill and of decoding, without cached prefixes and without waiting for environments."""
    rate = engine.count * engine.gpus * _rate(cfg, cluster, work)
    # Prefill computes logits of the last token only.
    cost = shape.cost.token * work.prompt_tokens + shape.cost.pair * work.prompt_tokens**2
    prefill = rows(cfg, work) * 2 * cost / rate
    length = work.prompt_tokens + work.response_tokens
    episodes = min(cfg.rollout.concurrency, cfg.rollout.groups * cfg.rollout.group_size)
    batch = max(1.0, min(episodes / engine.count, engine.tokens / length))  # of one server
    cache = engine.cache / max(1, engine.tokens) * length
    read = (engine.weights + batch * cache) / (work.bandwidth * cluster.device.bandwidth)
    token = max(read, engine.count * batch * 2 * whole(shape) / rate) + DECODE_OVERHEAD
    return prefill, rows(cfg, work) * work.response_tokens / (engine.count * batch) * token


def _push(shape: ModelShape, cfg: Config, cluster: Cluster) -> float:
    """Seconds to gather shards over the ranks that hold the model, and to send them to the engine."""
    size = whole(shape) * width(cfg)
    holders = cluster.world if cfg.parallel.pipeline > 1 else cfg.parallel.tensor  # stages are far apart
    gather = size / cluster.link(holders) if cfg.parallel.tensor * cfg.parallel.pipeline > 1 else 0.0
    link = cluster.device.network if _separate(cfg) else cluster.device.link
    return gather + size / link + size / (cfg.weights.bucket_mib << 20) * BUCKET_OVERHEAD


def _synchronize(shape: ModelShape, cfg: Config, cluster: Cluster, data: int) -> float:
    """Seconds of one update's reduce-scatter of float32 gradients and all-gather of parameters."""
    parallel = cfg.parallel
    ranks = data * parallel.context
    count = trained(shape, cfg, 0)
    gradients = 0 if parallel.overlap_grad_reduce else (1 if parallel.distributed_optimizer else 2) * FLOAT32
    gathered = width(cfg) if parallel.distributed_optimizer and not parallel.overlap_param_gather else 0
    span = cluster.world // parallel.pipeline
    return count * (gradients + gathered) * (ranks - 1) / ranks / cluster.link(span)
