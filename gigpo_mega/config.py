"""Everything a run can be told, as frozen dataclasses; `gigpo_mega.options` reads YAML and flags into them.

Each field's docstring is its `--help` text. Checks that need two fields name both values, and run before any
process group, engine or GPU is touched.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The policy."""

    path: Path | None = None
    """Hugging Face directory (config.json, tokenizer, safetensors) the policy starts from, or what
    tools/convert.py import made of one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameter type of learner and engine."""
    layers: Literal["auto", "local", "te"] = "auto"
    """Layer specification: Transformer Engine where it is installed (auto), or our own layers."""


@dataclass(frozen=True, config=STRICT)
class EnvironmentConfig:
    """The environment and how its text becomes prompts and actions."""

    name: str = "alfworld"
    """Registered environment name."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the environment, e.g. {max_steps: 50, anchor: observation}."""
    tasks: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of its task source, e.g. {data: path, task_types: [...]}."""
    split: str = "train"
    """Split that training tasks are drawn from."""
    max_steps: int = 50
    """Steps after which an episode ends."""
    workers: int = 1
    """Worker processes that hold the environments."""
    dialogue: str = "chat"
    """How the policy is talked to and answers: `chat` is the paper's message with <think> and <action> tags,
    `compact` plain text for small policies; an environment may bring more."""
    context: Literal["window", "append"] = "window"
    """Every step a fresh message with the last turns (window, the paper's), or one growing conversation."""
    history: int = 2
    """Number of past turns shown in a fresh message."""
    invalid: Literal["format", "admissible"] = "format"
    """What counts as an invalid action: a malformed answer (paper), or one the environment refuses too."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.max_steps >= 1, f"environment.max_steps must be >= 1, got {self.max_steps}")
        _require(self.history >= 0, f"environment.history must be >= 0, got {self.history}")
        _require(self.workers >= 1, f"environment.workers must be >= 1, got {self.workers}")
        return self


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """How much is sampled in an iteration, and how."""

    groups: int = 16
    """Tasks per iteration."""
    group_size: int = 8
    """Episodes per task (the paper's N)."""
    concurrency: int = 128
    """Episodes in flight at once."""
    max_prompt_tokens: int = 2048
    """Longest prompt; a longer one loses its oldest tokens."""
    max_response_tokens: int = 512
    """Tokens sampled per step at most."""
    temperature: float = 1.0
    """Sampling temperature of training episodes."""
    top_p: float = 1.0
    """Nucleus mass of training episodes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("groups", "group_size", "concurrency", "max_prompt_tokens", "max_response_tokens"):
            _require(getattr(self, name) >= 1, f"rollout.{name} must be >= 1, got {getattr(self, name)}")
        _require(self.temperature > 0, f"rollout.temperature must be > 0, got {self.temperature}")
        _require(0 < self.top_p <= 1, f"rollout.top_p must be in (0, 1], got {self.top_p}")
        return self


@dataclass(frozen=True, config=STRICT)
class EngineConfig:
    """The SGLang server."""

    url: str | None = None
    """Use a running server instead of launching one."""
    port: int | None = None
    """Port of the launched server; none picks a free one."""
    startup_timeout: float = 300.0
    """Seconds the server may take to become healthy."""
    request_timeout: float = 600.0
    """Seconds a request may take."""
    max_total_tokens: int | None = None
    """Size of the KV cache in tokens; none lets SGLang decide."""
    memory_fraction: float = 0.3
    """SGLang's --mem-fraction-static."""
    threads: int = 1
    """CPU threads of the server where there is no GPU."""
    max_logprob_gap: float | None = None
    """Mean |log-prob(engine) - log-prob(learner)| of an iteration's first update above which the run stops;
    none: 1e-3 in float32, 0.1 in bfloat16."""
    bucket_mib: int = 256
    """Size of a weight bucket in a push, in MiB."""
    arguments: list[str] = field(default_factory=list[str])
    """Further flags for the server, passed as they are."""


@dataclass(frozen=True, config=STRICT)
class AdvantageConfig:
    """The estimator."""

    estimator: Literal["gigpo", "grpo", "rloo"] = "gigpo"
    """Advantage estimator."""
    preset: Literal["paper", "reference"] = "paper"
    """`paper`: the equations (statistics over trajectories); `reference`: the official code (over rows)."""
    gamma: float = 0.95
    """Discount of the step returns (Eq. 5)."""
    omega: float = 1.0
    """Weight of the step-level advantage (Eq. 8)."""
    normalization: Literal["mean_std", "mean"] = "mean_std"
    """F_norm of Eq. 3 and 7: the standard deviation, or 1."""
    epsilon: float = 1e-6
    """Added to the standard deviation."""
    invalid_penalty: float = 0.1
    """Subtracted from the reward of a step whose action was invalid."""
    similarity: float | None = None
    """Group anchor states whose text similarity is at least this, instead of equal ones."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(0 < self.gamma <= 1, f"advantage.gamma must be in (0, 1], got {self.gamma}")
        _require(self.omega >= 0, f"advantage.omega must be >= 0, got {self.omega}")
        _require(self.epsilon > 0, f"advantage.epsilon must be > 0, got {self.epsilon}")
        _require(self.similarity is None or 0 < self.similarity <= 1,
                 f"advantage.similarity must be in (0, 1], got {self.similarity}")
        return self


@dataclass(frozen=True, config=STRICT)
class ObjectiveConfig:
    """The policy loss (Eq. 9)."""

    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = 3.0
    """Bound of the loss for negative advantages (dual clip); none turns it off."""
    kl_coef: float = 0.01
    """Weight of the KL divergence to the reference policy; 0 needs no reference policy."""
    kl_estimator: Literal["k1", "abs", "k2", "k3"] = "k3"
    """How a sampled token's KL is estimated: -d, |d|, d^2 / 2 or exp(d) - d - 1 of d = log(reference / policy);
    k1's gradient is 0 on average."""
    entropy_coef: float = 0.001
    """Weight of the entropy bonus."""
    old_logprob: Literal["learner", "engine"] = "learner"
    """Denominator of the ratio: scored by the learner before the update, or as the engine sampled it."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio that is clipped: each token's own, or its response's geometric mean (GSPO)."""
    aggregation: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = (
        "token-mean"
    )
    """How token losses become one: the mean over all tokens, or over all responses the mean of their sums, of
    their means (GRPO, GSPO), or of their sums divided by rollout.max_response_tokens (Dr. GRPO)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(0 < self.clip_low < 1, f"objective.clip_low must be in (0, 1), got {self.clip_low}")
        _require(self.clip_high > 0, f"objective.clip_high must be > 0, got {self.clip_high}")
        _require(self.dual_clip is None or self.dual_clip > 1,
                 f"objective.dual_clip must be > 1, got {self.dual_clip}")
        _require(self.kl_coef >= 0, f"objective.kl_coef must be >= 0, got {self.kl_coef}")
        return self


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """Adam with warm-up and decay."""

    lr: float = 1e-6
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    warmup_updates: int = 0
    """Optimizer updates of linear warm-up."""
    decay_updates: int | None = None
    """Optimizer updates until min_lr is reached; required by a schedule that decays."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    beta1: float = 0.9
    """Adam's first moment decay."""
    beta2: float = 0.999
    """Adam's second moment decay."""
    epsilon: float = 1e-8
    """Adam's epsilon."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.lr > 0, f"optimizer.lr must be > 0, got {self.lr}")
        _require(self.min_lr <= self.lr, f"optimizer.min_lr {self.min_lr} exceeds optimizer.lr {self.lr}")
        _require(self.schedule == "constant" or self.decay_updates is not None,
                 f"optimizer.schedule {self.schedule} needs optimizer.decay_updates, which is not set")
        _require(self.decay_updates is None or self.decay_updates > self.warmup_updates,
                 f"optimizer.decay_updates {self.decay_updates} must exceed "
                 f"optimizer.warmup_updates {self.warmup_updates}")
        return self


@dataclass(frozen=True, config=STRICT)
class BatchConfig:
    """How rows become updates."""

    rows: int | None = 256
    """Rows per optimizer update; none uses all rows of an iteration in one."""
    microbatch_tokens: int = 16384
    """Tokens in a micro-batch at most, with padding or alignment; over all context-parallel ranks."""
    packed: bool = True
    """Sequences side by side without padding, or each in a row as wide as the longest."""
    epochs: int = 1
    """Passes over the rows of an iteration."""
    shuffle: bool = False
    """Shuffle the rows before they are cut into updates."""
    skip_zero: bool = False
    """Leave out rows whose advantage is 0 when neither KL nor entropy needs them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.rows is None or self.rows >= 1, f"batch.rows must be >= 1, got {self.rows}")
        _require(self.epochs >= 1, f"batch.epochs must be >= 1, got {self.epochs}")
        _require(self.microbatch_tokens >= 1,
                 f"batch.microbatch_tokens must be >= 1, got {self.microbatch_tokens}")
        return self


@dataclass(frozen=True, config=STRICT)
class ParallelConfig:
    """The layout; data-parallel size = world size / (tensor x pipeline x context)."""

    tensor: int = 1
    """Tensor-parallel size: ranks that share every layer."""
    pipeline: int = 1
    """Pipeline-parallel size: stages of consecutive layers."""
    virtual_pipeline: int = 1
    """Chunks of layers per stage; more shorten the pipeline's idle time (interleaved schedule)."""
    context: int = 1
    """Context-parallel size: ranks that share every sequence."""
    sequence_parallel: bool = False
    """Split activations along the sequence within a tensor-parallel group."""
    distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Sum gradients over data-parallel ranks while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather the distributed optimizer's parameters while the next forward pass goes on."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: attention's core (selective), or all of a layer."""
    offload_optimizer: float = 0.0
    """Fraction of the optimizer's state, and of its work, that the CPU takes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("tensor", "pipeline", "virtual_pipeline", "context"):
            _require(getattr(self, name) >= 1, f"parallel.{name} must be >= 1, got {getattr(self, name)}")
        _require(not self.sequence_parallel or self.tensor > 1,
                 f"parallel.sequence_parallel needs parallel.tensor > 1, got {self.tensor}")
        _require(self.virtual_pipeline == 1 or self.pipeline > 1,
                 f"parallel.virtual_pipeline {self.virtual_pipeline} needs parallel.pipeline > 1, "
                 f"got {self.pipeline}")
        _require(not self.overlap_param_gather or (self.distributed_optimizer and self.overlap_grad_reduce),
                 "parallel.overlap_param_gather needs parallel.distributed_optimizer and "
                 "parallel.overlap_grad_reduce")
        _require(0 <= self.offload_optimizer <= 1,
                 f"parallel.offload_optimizer must be in [0, 1], got {self.offload_optimizer}")
        return self


@dataclass(frozen=True, config=STRICT)
class KernelConfig:
    """How the learner computes what it needs of every token."""

    backend: Literal["auto", "triton", "chunked", "reference"] = "auto"
    """Log-probabilities of the head: `triton` fuses product and softmax (bfloat16 on CUDA), `chunked` takes
    blocks with library products, `reference` keeps all logits; `auto` is the first of these that can run."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """What is kept, and when."""

    every: int = 10
    """Iterations between full checkpoints; collected groups are kept after every iteration anyway."""
    keep: int = 2
    """Full checkpoints kept."""
    background: bool = False
    """Write checkpoints from a copy in host memory while the run goes on."""
    export: bool = True
    """Write the final policy as a Hugging Face directory."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.every >= 1, f"checkpoint.every must be >= 1, got {self.every}")
        _require(self.keep >= 1, f"checkpoint.keep must be >= 1, got {self.keep}")
        return self


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """The fixed held-out panel."""

    split: str = "valid_unseen"
    """Split the panel is drawn from."""
    episodes: int = 128
    """Episodes on the panel; tasks repeat where the split has fewer."""
    every: int = 0
    """Iterations between evaluations; 0: only before the first and after the last."""
    temperature: float = 0.4
    """Sampling temperature; 0 is greedy."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.episodes >= 1, f"evaluation.episodes must be >= 1, got {self.episodes}")
        _require(self.every >= 0, f"evaluation.every must be >= 0, got {self.every}")
        _require(self.temperature >= 0, f"evaluation.temperature must be >= 0, got {self.temperature}")
        return self


@dataclass(frozen=True, config=STRICT)
class ColdstartConfig:
    """Behaviour cloning on expert episodes."""

    games: int = 1000
    """Expert episodes cloned."""
    detour: float = 0.2
    """Probability that the demonstrator idles or explores instead of the expert's command."""
    updates: int = 1000
    """Optimizer updates."""
    rows: int = 32
    """Rows per update."""
    prompt_weight: float = 0.0
    """Weight of a prompt token's log-likelihood beside an action token's 1; teaches copying from scratch."""
    vocabulary: int = 1024
    """Size of the tokenizer trained on the games' text (from scratch only)."""
    hidden: int = 96
    """Hidden size (from scratch only)."""
    ffn: int = 256
    """Feed-forward size (from scratch only)."""
    layers: int = 3
    """Transformer layers (from scratch only)."""
    heads: int = 4
    """Attention heads (from scratch only)."""
    kv_heads: int = 2
    """Key/value heads (from scratch only)."""


@dataclass(frozen=True, config=STRICT)
class Config:
    """One runnable experiment."""

    steps: int = 150
    """Iterations."""
    output: Path = Path("runs/run")
    """Folder that receives metrics, checkpoints, groups and the report."""
    seed: int = 0
    """Seed of task order, initialisation and shuffling."""
    resume: bool = False
    """Go on from the newest good checkpoint and groups in `output`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    coldstart: ColdstartConfig = field(default_factory=ColdstartConfig)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.steps >= 0, f"steps must be >= 0, got {self.steps}")
        _require(self.advantage.estimator != "rloo" or self.rollout.group_size >= 2,
                 f"advantage.estimator rloo needs rollout.group_size >= 2, got {self.rollout.group_size}")
        return self
