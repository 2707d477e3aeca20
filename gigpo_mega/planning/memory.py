"""Bytes on one GPU: counted from the shape and the layout, as the learner and SGLang allocate them.

The learner's part follows its `local` layers in megatron-core; tests/tools/test_plan.py holds it to real
learners. What no formula gives is a named constant here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from gigpo_mega.config import Config, ParallelConfig
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.planning.devices import GIB, Cluster
from kernels.logprob.chunked import CUDA_ELEMENTS

PROCESS = 1.5 * GIB  # CUDA context, NCCL's buffers and cuBLAS's workspaces of a learner rank
ENGINE_PROCESS = 3.0 * GIB  # the same of SGLang, with its CUDA graphs
USABLE = 0.95  # of a GPU's memory; the rest is lost between blocks of the allocator
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU at the worst moment of an iteration."""

    weights: float  # with adapters
    gradients: float  # float32; with LoRA of adapters alone, as the optimizer's
    optimizer: float  # float32 copies of 16-bit weights, and Adam's two moments
    reference: float  # the frozen policy of the KL term; with LoRA it is the policy without adapters
    activations: float
    logprob: float  # hidden states of response tokens and the kernel's workspace; logits are never whole
    engine_weights: float
    engine_cache: float  # keys and values
    runtime: float  # PROCESS, ENGINE_PROCESS

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True)
class Engine:
    """SGLang's share of the GPUs it runs on: the first of the leader's node."""

    gpus: int
    weights: float  # bytes on each
    cache: float  # bytes on each
    tokens: int  # that the cache holds


def width(cfg: Config) -> int:
    """Bytes of a parameter."""
    return 2 if cfg.model.dtype == "bfloat16" else 4


def parameters(shape: ModelShape, parallel: ParallelConfig, stage: int) -> int:
    """Parameters that one rank of pipeline stage `stage` holds."""
    tensor, h = parallel.tensor, shape.hidden
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    qkv = (queries + 2 * keys) // tensor
    layer = qkv * h + queries // tensor * h + 3 * (shape.ffn // tensor) * h + 2 * h
    layer += qkv if shape.qkv_bias else 0
    layer += 2 * shape.head_dim if shape.qk_norm else 0
    last = stage == parallel.pipeline - 1
    vocabulary = shape.padded_vocab(tensor) // tensor * h
    # A tied table is in the first stage and, where that is another, in the last.
    tables = (stage == 0) + (last and not (shape.tied and stage == 0))
    return shape.layers // parallel.pipeline * layer + tables * vocabulary + (h if last else 0)


def whole(shape: ModelShape) -> int:
    """Parameters of the model."""
    return parameters(shape, ParallelConfig(), 0)


def adapters(shape: ModelShape, cfg: Config) -> int:
    """Parameters of adapters that one rank holds; 0 without LoRA."""
    tensor, each = cfg.parallel.tensor, 0
    for name in cfg.lora.targets if cfg.lora.rank else []:
        wide, high = shape.linears[name]
        by_row = name in ("linear_proj", "linear_fc2")
        each += wide // tensor + high if by_row else wide + high // tensor
    return shape.layers // cfg.parallel.pipeline * (cfg.lora.rank or 0) * each


def trained(shape: ModelShape, cfg: Config, stage: int) -> int:
    """Parameters with a gradient that one rank of pipeline stage `stage` holds."""
    return adapters(shape, cfg) if cfg.lora.rank else parameters(shape, cfg.parallel, stage)


def stored(shape: ModelShape, cfg: Config, stage: int, replicas: int) -> tuple[float, float, float, float]:
    """(weights, gradients, optimizer, reference) of a rank; `replicas` ranks hold the same shard."""
    count = trained(shape, cfg, stage)
    base = float(parameters(shape, cfg.parallel, stage) * width(cfg))
    copies = FLOAT32 if cfg.model.dtype == "bfloat16" else 0
    shards = replicas if cfg.parallel.distributed_optimizer else 1
    optimizer = count * (copies + 2 * FLOAT32) / shards * (1 - cfg.parallel.offload_optimizer)
    weights = base + adapters(shape, cfg) * width(cfg)
    reference = base if cfg.objective.kl_coef and not cfg.lora.rank else 0.0
    return weights, float(count * FLOAT32), optimizer, reference


def layer_activations(
    shape: ModelShape, cfg: Config, tokens: float, columns: float, fused_norm: bool = True
) -> float:
    """Bytes that one layer keeps for its backward pass, for `tokens` in rows of `columns` in all.

    Kept in the model's type: input and output of both norms; query, key and value before and after rotation;
    attention's output; and of the gated MLP its input product (twice its width), both factors and their
    product. Where torch has no fused norm (on a CPU), it keeps a norm's input and, for the gradient of its
    weight, its normal form in float32.
    """
    parallel = cfg.parallel
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * width(cfg) if fused_norm else (2 if cfg.lora.rank else 4) * FLOAT32
    own = shape.hidden * (norms + 2 * width(cfg)) / (parallel.tensor if parallel.sequence_parallel else 1)
    attention = queries * (2 if cfg.batch.packed else 1)  # packed sequences are put together again
    projected = 2 * queries + 3 * keys
    if parallel.context > 1:  # gathered keys and values stand for the rank's own
        projected = queries + 2 * keys * parallel.context
    if shape.qk_norm:
        projected += queries if fused_norm or cfg.lora.rank else 2 * queries + keys
    shared = (projected + attention + 5 * shape.ffn) / parallel.tensor
    shared += (cfg.lora.rank or 0) * len(cfg.lora.targets)  # what stands between A and B
    rotation = 4 * shape.head_dim * columns
    statistics = FLOAT32 * (shape.heads / parallel.tensor + 2)
    return tokens * (own + shared * width(cfg) + statistics) + rotation * width(cfg)


def backward_workspace(shape: ModelShape, cfg: Config, tokens: float) -> float:
    """Bytes of the gradients that the backward pass of an MLP needs beyond what it frees."""
    return tokens * 2 * shape.ffn / cfg.parallel.tensor * width(cfg)


def held_layers(shape: ModelShape, parallel: ParallelConfig, stage: int, microbatches: int) -> float:
    """Layers x micro-batches whose activations a stage holds at once (1F1B, or interleaved)."""
    pipeline, virtual = parallel.pipeline, parallel.virtual_pipeline
    per_chunk = shape.layers / (pipeline * virtual)
    if virtual == 1:
        return min(pipeline - stage, microbatches) * per_chunk
    warm = 2 * (pipeline - stage - 1) + (virtual - 1) * pipeline + 1
    return min(warm, microbatches * virtual) * per_chunk


def activations(
    shape: ModelShape, cfg: Config, stage: int, microbatches: int, fused_norm: bool = True
) -> float:
    """Bytes of activations at the start of the first backward pass of a stage, and what that adds."""
    tokens, columns = micro_batch(cfg)
    layers = held_layers(shape, cfg.parallel, stage, microbatches)
    one = layer_activations(shape, cfg, tokens, columns, fused_norm)
    workspace = backward_workspace(shape, cfg, tokens)
    if cfg.parallel.recompute != "full":
        return layers * one + workspace
    split = cfg.parallel.tensor if cfg.parallel.sequence_parallel else 1
    return layers * tokens * shape.hidden / split * width(cfg) + one + workspace


def micro_batch(cfg: Config) -> tuple[float, float]:
    """(tokens, columns) of a micro-batch on one rank: the budget, or the longest row where that is longer."""
    longest = longest_row(cfg)
    tokens = max(cfg.batch.microbatch_tokens, longest)
    columns = tokens if cfg.batch.packed else longest
    return tokens / cfg.parallel.context, columns / cfg.parallel.context


def longest_row(cfg: Config) -> int:
    """Tokens of the longest possible row."""
    return cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens


def logprob(shape: ModelShape, cfg: Config, stage: int, elements: int = CUDA_ELEMENTS) -> float:
    """Bytes after the last layer: final norm, response tokens' hidden states, blocks of `elements` logits."""
    if stage != cfg.parallel.pipeline - 1:
        return 0.0
    tokens, _ = micro_batch(cfg)
    responses = tokens * cfg.rollout.max_response_tokens / longest_row(cfg)
    hidden = shape.hidden * width(cfg)
    blocks = elements * (FLOAT32 + width(cfg))
    return 2 * tokens * hidden + 2 * responses * hidden + blocks


def engine(shape: ModelShape, cfg: Config, cluster: Cluster, learner: float) -> Engine | None:
    """SGLang beside a rank that holds `learner` bytes when the server starts; None where it runs apart."""
    if cfg.engine.url is not None:
        return None
    tensor = flag(cfg.engine.arguments, ("--tp-size", "--tp", "--tensor-parallel-size"))
    weights = whole(shape) * width(cfg) / tensor
    heads = max(1, shape.kv_heads // tensor)
    per_token = 2 * shape.layers * heads * shape.head_dim * width(cfg)
    free = cluster.device.memory - PROCESS - ENGINE_PROCESS - learner
    tokens = max(0, int((cfg.engine.memory_fraction * free - weights) / per_token))
    if cfg.engine.max_total_tokens is not None:
        tokens = min(tokens, cfg.engine.max_total_tokens)
    return Engine(tensor, weights, tokens * per_token, tokens)


def flag(arguments: Sequence[str], names: tuple[str, ...]) -> int:
    """The number that the last of `names` in a command line gives, 1 without."""
    found = 1
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in names:
            found = int(value if equals else arguments[i + 1])
    return found


def on_rank(
    shape: ModelShape,
    cfg: Config,
    cluster: Cluster,
    *,
    stage: int,
    replicas: int,
    microbatches: int,
    server: bool,
) -> tuple[Memory, Engine | None]:
    """The memory of a rank of `stage`, with SGLang beside it if `server`."""
    weights, gradients, optimizer, reference = stored(shape, cfg, stage, replicas)
    moments = 2 / 3 if cfg.model.dtype == "bfloat16" else 1.0
    at_start = weights + gradients + reference + optimizer * (1 - moments)  # made in Adam's first step
    beside = engine(shape, cfg, cluster, at_start) if server else None
    memory = Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        reference=reference,
        activations=activations(shape, cfg, stage, microbatches),
        logprob=logprob(shape, cfg, stage),
        engine_weights=beside.weights if beside else 0.0,
        engine_cache=beside.cache if beside else 0.0,
        runtime=PROCESS + (ENGINE_PROCESS if beside else 0.0),
    )
    return memory, beside
