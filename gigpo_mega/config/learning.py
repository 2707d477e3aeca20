"""What is learned, and how: policy, advantage, loss, optimizer, updates, cold start."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, at_least, require

Linear = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


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


def _all_linear() -> list[Linear]:
    return ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


@dataclass(frozen=True, config=STRICT)
class LoraConfig:
    """Low-rank adapters, trained in the place of the policy's own weights."""

    rank: int | None = None
    """Rank of the adapters; none trains all weights."""
    alpha: float | None = None
    """An adapter's product counts alpha / rank; none counts it once."""
    targets: list[Linear] = field(default_factory=_all_linear)
    """Linear layers that get one: linear_qkv (query, key, value), linear_proj (attention's output),
    linear_fc1 (gate, up), linear_fc2 (down)."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.rank is None or self.rank >= 1, f"lora.rank must be >= 1 or null, got {self.rank}")
        require(self.alpha is None or self.alpha > 0, f"lora.alpha must be > 0 or null, got {self.alpha}")
        require(bool(self.targets), "lora.targets is empty; lora.rank null trains all weights")
        return self


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
        require(0 < self.gamma <= 1, f"advantage.gamma must be in (0, 1], got {self.gamma}")
        require(self.omega >= 0, f"advantage.omega must be >= 0, got {self.omega}")
        require(self.epsilon > 0, f"advantage.epsilon must be > 0, got {self.epsilon}")
        require(
            self.similarity is None or 0 < self.similarity <= 1,
            f"advantage.similarity must be in (0, 1], got {self.similarity}",
        )
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
    """A sampled token's KL: -d, |d|, d^2 / 2 or exp(d) - d - 1 of d = log(reference / policy); k1 gives no
    gradient on average."""
    entropy_coef: float = 0.001
    """Weight of the entropy bonus."""
    old_logprob: Literal["learner", "engine"] = "learner"
    """Denominator of the ratio: scored by the learner before the update, or as the engine sampled it."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio that is clipped: each token's own, or its response's geometric mean (GSPO)."""
    aggregation: Aggregation = "token-mean"
    """How token losses become one: the mean over all tokens, or over all responses the mean of their sums, of
    their means (GRPO, GSPO), or of their sums divided by rollout.max_response_tokens (Dr. GRPO)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(0 < self.clip_low < 1, f"objective.clip_low must be in (0, 1), got {self.clip_low}")
        require(self.clip_high > 0, f"objective.clip_high must be > 0, got {self.clip_high}")
        require(
            self.dual_clip is None or self.dual_clip > 1,
            f"objective.dual_clip must be > 1, got {self.dual_clip}",
        )
        at_least(0, "objective", self, "kl_coef")
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
        require(self.lr > 0, f"optimizer.lr must be > 0, got {self.lr}")
        require(self.min_lr <= self.lr, f"optimizer.min_lr {self.min_lr} exceeds optimizer.lr {self.lr}")
        require(
            self.schedule == "constant" or self.decay_updates is not None,
            f"optimizer.schedule {self.schedule} needs optimizer.decay_updates, which is not set",
        )
        require(
            self.decay_updates is None or self.decay_updates > self.warmup_updates,
            f"optimizer.decay_updates {self.decay_updates} must exceed "
            f"optimizer.warmup_updates {self.warmup_updates}",
        )
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
        require(self.rows is None or self.rows >= 1, f"batch.rows must be >= 1, got {self.rows}")
        at_least(1, "batch", self, "epochs", "microbatch_tokens")
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
