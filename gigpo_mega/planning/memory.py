"""Bytes on one GPU, counted from the shape and the layout as the learner and SGLang allocate them.

The learner's part follows megatron-core with our `local` layers, with which tools/emulate.py compares it, or
with Transformer Engine's, as far as its source says. What cannot be computed is a named constant here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from gigpo_mega.config import Config, ParallelConfig
from gigpo_mega.planning.devices import GIB, Cluster, Device
from gigpo_mega.shape import ModelShape
from kernels.sizes import CUDA_ELEMENTS, TRITON_ELEMENTS

PROCESS = 1.5 * GIB  # CUDA context, NCCL's buffers and cuBLAS's workspaces of a learner rank
ENGINE_PROCESS = 3.0 * GIB  # the same of SGLang, with its CUDA graphs
PEER_CONTEXT = 0.5 * GIB  # of a server on another GPU, which opens what is pushed where it lies
USABLE = 0.95  # of a GPU's memory; fragmentation takes the rest
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU at the worst moment of an iteration."""

    weights: float = 0.0  # with adapters
    gradients: float = 0.0  # float32; with LoRA those of the adapters only, as for the optimizer
    optimizer: float = 0.0  # float32 copies of 16-bit weights, and Adam's two moments
    reference: float = 0.0  # the frozen policy of the KL term; with LoRA the policy without adapters
    activations: float = 0.0
    logprob: float = 0.0  # hidden states of response tokens, and what the head needs beyond a layer
    engine_weights: float = 0.0
    engine_cache: float = 0.0  # keys and values
    runtime: float = 0.0  # PROCESS, ENGINE_PROCESS, PEER_CONTEXT

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True)
class Engine:
    """SGLang, on the first GPUs of every node or on GPUs of its own: `count` servers of `gpus` each."""

    count: int
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
    # A tied table is in the first stage, and also in the last if that is another stage.
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
    optimizer = count * (copies + 2 * FLOAT32) / shards
    weights = base + adapters(shape, cfg) * width(cfg)
    reference = base if cfg.objective.kl_coef and not cfg.lora.rank else 0.0
    return weights, float(count * FLOAT32), optimizer, reference


def layer_activations(shape: ModelShape, cfg: Config, tokens: float, columns: float) -> float:
    """Bytes that one layer keeps for its backward pass, for `tokens` in rows of `columns` in all.

    Kept in the type of the model: input and output of both norms; what attention keeps; and for the gated MLP
    its input product (twice its width), both factors and their product.
    """
    parallel = cfg.parallel
    own = 4 * shape.hidden / (parallel.tensor if parallel.sequence_parallel else 1)
    shared = (attention(shape, cfg) + 5 * shape.ffn) / parallel.tensor
    shared += (cfg.lora.rank or 0) * len(cfg.lora.targets)  # the product with A
    rotation = 4 * shape.head_dim * columns
    statistics = FLOAT32 * (shape.heads / parallel.tensor + 2)
    return tokens * ((own + shared) * width(cfg) + statistics) + rotation * width(cfg)


def attention(shape: ModelShape, cfg: Config) -> float:
    """Elements that the attention of a layer keeps of each token, on all tensor-parallel ranks together."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if cfg.model.layers != "local" and cfg.lora.rank is None and cfg.model.dtype != "float32":
        # Transformer Engine makes them contiguous: only norms of queries and keys hold on to the projection.
        return (2 * queries + 2 * keys) * (2 if shape.qk_norm else 1)
    kept = 2 * queries + 3 * keys  # before and after rotation: the value is a view of the projection
    if cfg.parallel.context > 1:  # gathered keys and values replace those of the rank
        kept = queries + 2 * keys * cfg.parallel.context
    kept += queries if shape.qk_norm else 0
    concatenated = cfg.batch.packed and cfg.parallel.recompute != "selective"
    return kept + queries * (2 if concatenated else 1)


def layer_gradients(shape: ModelShape, cfg: Config, tokens: float) -> float:
    """Bytes of gradients that the backward pass of an MLP needs beyond those that it frees."""
    return tokens * 2 * shape.ffn / cfg.parallel.tensor * width(cfg)


def head_gradients(shape: ModelShape, cfg: Config, responses: float) -> float:
    """Bytes of the head's backward pass: gradients of hidden states, in two types, and a block of logits."""
    logits = responses * shape.padded_vocab(cfg.parallel.tensor) / cfg.parallel.tensor
    if width(cfg) == FLOAT32 or cfg.kernels.backend == "chunked":
        block = min(logits, CUDA_ELEMENTS) * (FLOAT32 + width(cfg))
    else:
        block = min(logits, TRITON_ELEMENTS) * width(cfg)
    return responses * shape.hidden * (FLOAT32 + width(cfg)) + block


def held_layers(shape: ModelShape, parallel: ParallelConfig, stage: int, microbatches: int) -> float:
    """Layers x micro-batches whose activations a stage holds at once (1F1B, or interleaved)."""
    pipeline, virtual = parallel.pipeline, parallel.virtual_pipeline
    per_chunk = shape.layers / (pipeline * virtual)
    if virtual == 1:
        return min(pipeline - stage, microbatches) * per_chunk
    warm = 2 * (pipeline - stage - 1) + (virtual - 1) * pipeline + 1
    return min(warm, microbatches * virtual) * per_chunk


def passes(shape: ModelShape, cfg: Config, stage: int, microbatches: int) -> tuple[float, float]:
    """(activations, logprob) of a stage when its forward and backward passes need the most.

    That is in its first backward pass, which begins with the head, on the last stage, and goes on with a
    layer. Besides what layers keep there are hidden states at the end of the stage, and the buffer into which
    sequence parallelism gathers them.
    """
    parallel, (tokens, columns) = cfg.parallel, micro_batch(cfg)
    gathered = tokens * shape.hidden * width(cfg)
    hidden = gathered / parallel.tensor if parallel.sequence_parallel else gathered
    layer = layer_activations(shape, cfg, tokens, columns)
    working = layer_gradients(shape, cfg, tokens)
    if parallel.recompute == "full":
        layer, working = hidden, layer + working
    kept = held_layers(shape, parallel, stage, microbatches) * layer + hidden
    kept += gathered if parallel.sequence_parallel else 0.0
    if stage != parallel.pipeline - 1:
        return kept + working, 0.0
    responses = tokens * cfg.rollout.max_response_tokens / longest_row(cfg)
    beyond = max(0.0, head_gradients(shape, cfg, responses) - working)
    return kept + working, responses * shape.hidden * width(cfg) + beyond


def micro_batch(cfg: Config) -> tuple[float, float]:
    """(tokens, columns) of a micro-batch on one rank: the budget, or the longest row if that is longer."""
    longest = longest_row(cfg)
    tokens = max(cfg.batch.microbatch_tokens, longest)
    columns = tokens if cfg.batch.packed else longest
    return tokens / cfg.parallel.context, columns / cfg.parallel.context


def longest_row(cfg: Config) -> int:
    """Tokens of the longest possible row."""
    return cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens


def engine(shape: ModelShape, cfg: Config, device: Device, count: int, taken: float = 0.0) -> Engine:
    """`count` SGLang servers, on GPUs of which `taken` bytes are the learner's when they start.

    Raises UserError for a size that does not divide the model.
    """
    tensor = cfg.engine.tensor
    shape.check_engine(tensor)
    weights = whole(shape) * width(cfg) / tensor
    heads = max(1, shape.kv_heads // tensor)
    per_token = 2 * shape.layers * heads * shape.head_dim * width(cfg)
    free = device.memory - taken - ENGINE_PROCESS
    tokens = max(0, int((cfg.engine.memory_fraction * free - weights) / per_token))
    if cfg.engine.max_total_tokens is not None:
        tokens = min(tokens, cfg.engine.max_total_tokens)
    return Engine(count, tensor, weights, tokens * per_token, tokens)


def servers(cfg: Config, cluster: Cluster) -> int:
    """SGLang servers of each node of the learner; 0 if they are elsewhere.

    Raises UserError if a node's GPUs do not hold them.
    """
    if cfg.engine.urls or cfg.engine.placement == "separate":
        return 0
    return cfg.engine.servers(cluster.per_node)


def separate(shape: ModelShape, cfg: Config, device: Device) -> tuple[Memory, Engine] | None:
    """The memory of a GPU that a server of the run has to itself, and all those servers; None without any."""
    if cfg.engine.placement != "separate" or cfg.engine.replicas is None:
        return None
    found = engine(shape, cfg, device, cfg.engine.replicas)
    held = Memory(engine_weights=found.weights, engine_cache=found.cache, runtime=ENGINE_PROCESS)
    return held, found


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
    """The memory of a rank of `stage`, which shares its GPU with SGLang if `server`, and all such servers.

    The other servers of a node have contexts on the GPU of its first rank, which pushes; every rank with a
    server is counted as that one. If the engine lends the memory of its cache, the worst moment is either an
    update or a rollout.
    """
    weights, gradients, optimizer, reference = stored(shape, cfg, stage, replicas)
    moments = 2 / 3 if cfg.model.dtype == "bfloat16" else 1.0
    at_start = weights + gradients + reference + optimizer * (1 - moments)  # Adam allocates moments later
    each = servers(cfg, cluster)
    count = cluster.nodes * each
    peers = each * cfg.engine.tensor - 1 if cfg.weights.transport == "tensor" else 0
    found = engine(shape, cfg, cluster.device, count, PROCESS + at_start) if server else None
    activations, logprob = passes(shape, cfg, stage, microbatches)
    update = Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        reference=reference,
        activations=activations,
        logprob=logprob,
        engine_weights=found.weights if found else 0.0,
        engine_cache=found.cache if found else 0.0,
        runtime=PROCESS + (ENGINE_PROCESS + peers * PEER_CONTEXT if found else 0.0),
    )
    if not cfg.lends_memory:
        return update, found
    rollout = replace(update, activations=0.0, logprob=0.0)
    return max(replace(update, engine_cache=0.0), rollout, key=lambda memory: memory.total), found
