"""Seconds of an iteration: floating-point operations over an assumed utilisation, bytes over link speeds.

Utilisation and lengths are assumptions (`Workload`): an estimate to choose a layout by, no promise.
"""

from __future__ import annotations

from dataclasses import dataclass

from gigpo_mega.config import Config
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.planning.devices import Cluster
from gigpo_mega.planning.memory import FLOAT32, Engine, longest_row, trained, whole, width

DECODE_OVERHEAD = 3e-3  # seconds of a decoding step that the GPU waits for scheduler and sampling
BUCKET_OVERHEAD = 1e-2  # seconds of a request that pushes a bucket of weights


@dataclass(frozen=True, slots=True)
class Workload:
    """What is assumed of episodes and hardware."""

    episode_steps: float  # on average, as the next two
    prompt_tokens: float
    response_tokens: float
    mfu: float = 0.4  # of the GPU's peak, in the learner's and the engine's large products
    bandwidth: float = 0.6  # of the memory's peak, in decoding

    @classmethod
    def of(cls, cfg: Config) -> Workload:
        """Half of every limit of `cfg`."""
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

    @property
    def total(self) -> float:
        """All of them: no part overlaps with another."""
        return self.push + self.prefill + self.decode + self.score + self.update + self.synchronize


def rows(cfg: Config, work: Workload) -> float:
    """Rows of an iteration."""
    return cfg.rollout.groups * cfg.rollout.group_size * work.episode_steps


def updates(cfg: Config, work: Workload) -> int:
    """Optimizer updates of an iteration."""
    per_epoch = max(1, round(rows(cfg, work) / cfg.batch.rows)) if cfg.batch.rows else 1
    return per_epoch * cfg.batch.epochs


def micro_batches(cfg: Config, work: Workload, data: int) -> int:
    """Micro-batches of a data-parallel rank in one update."""
    per_update = rows(cfg, work) * cfg.batch.epochs / updates(cfg, work)
    mean, budget = (
        work.prompt_tokens + work.response_tokens,
        max(cfg.batch.microbatch_tokens, longest_row(cfg)),
    )
    if not cfg.batch.packed:
        mean = longest_row(cfg)
    chunks = cfg.parallel.pipeline if cfg.parallel.virtual_pipeline > 1 else 1
    return -(-max(1, round(per_update * mean / data)) // budget // chunks) * chunks


def seconds(
    shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload, engine: Engine | None
) -> Seconds:
    """The estimate; without an `engine` on these GPUs, the rollout counts nothing."""
    data = cluster.world // (cfg.parallel.tensor * cfg.parallel.pipeline * cfg.parallel.context)
    bubble = (cfg.parallel.pipeline - 1) / (cfg.parallel.virtual_pipeline * micro_batches(cfg, work, data))
    rate = cluster.world * _rate(cfg, cluster, work)
    forward = rows(cfg, work) * _forward(shape, work) / rate * (1 + bubble)
    scored = (cfg.objective.old_logprob == "learner") + bool(cfg.objective.kl_coef)
    # A backward pass counts two, one of them for weights.
    passes = 3 + (cfg.parallel.recompute == "full") - (cfg.lora.rank is not None)
    prefill, decode = _rollout(shape, cfg, cluster, work, engine) if engine else (0.0, 0.0)
    return Seconds(
        push=_push(shape, cfg, cluster),
        prefill=prefill,
        decode=decode,
        score=scored * forward,
        update=passes * cfg.batch.epochs * forward,
        synchronize=_synchronize(shape, cfg, cluster, data) * updates(cfg, work),
    )


def _forward(shape: ModelShape, work: Workload) -> float:
    """Operations of one row's forward pass; a multiply-add counts two, attention is causal."""
    cost, tokens = shape.cost, work.prompt_tokens + work.response_tokens
    return 2 * (cost.token * tokens + cost.pair * tokens**2 + cost.response * work.response_tokens)


def _rate(cfg: Config, cluster: Cluster, work: Workload) -> float:
    device = cluster.device
    return work.mfu * (device.flops if cfg.model.dtype == "bfloat16" else device.flops_float32)


def _rollout(
    shape: ModelShape, cfg: Config, cluster: Cluster, work: Workload, engine: Engine
) -> tuple[float, float]:
    """Seconds of prefill and of decoding; nothing is taken to be cached, no environment waited for."""
    rate = engine.gpus * _rate(cfg, cluster, work)
    # Prefill computes logits of the last token alone.
    prefill = (
        rows(cfg, work)
        * 2
        * (shape.cost.token * work.prompt_tokens + shape.cost.pair * work.prompt_tokens**2)
        / rate
    )
    length = work.prompt_tokens + work.response_tokens
    episodes = min(cfg.rollout.concurrency, cfg.rollout.groups * cfg.rollout.group_size)
    batch = max(1.0, min(float(episodes), engine.tokens / length))
    cache = engine.cache / max(1, engine.tokens) * length
    read = (engine.weights + batch * cache) / (work.bandwidth * cluster.device.bandwidth)
    step = max(read, batch * 2 * whole(shape) / rate) + DECODE_OVERHEAD
    return prefill, rows(cfg, work) * work.response_tokens / batch * step


def _push(shape: ModelShape, cfg: Config, cluster: Cluster) -> float:
    """Shards are gathered over the ranks that hold the model, then handed to the engine."""
    size = whole(shape) * width(cfg)
    holders = cluster.world if cfg.parallel.pipeline > 1 else cfg.parallel.tensor  # stages lie far apart
    gather = size / cluster.link(holders) if cfg.parallel.tensor * cfg.parallel.pipeline > 1 else 0.0
    return gather + size / cluster.device.link + size / (cfg.engine.bucket_mib << 20) * BUCKET_OVERHEAD


def _synchronize(shape: ModelShape, cfg: Config, cluster: Cluster, data: int) -> float:
    """Seconds of one update's reduce-scatter of float32 gradients and all-gather of parameters."""
    parallel = cfg.parallel
    ranks = data * parallel.context
    count = trained(shape, cfg, 0)
    gradients = 0 if parallel.overlap_grad_reduce else (1 if parallel.distributed_optimizer else 2) * FLOAT32
    gathered = width(cfg) if parallel.distributed_optimizer and not parallel.overlap_param_gather else 0
    span = cluster.world // parallel.pipeline
    return count * (gradients + gathered) * (ranks - 1) / ranks / cluster.link(span)
