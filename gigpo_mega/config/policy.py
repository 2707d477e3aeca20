"""The policy: where its weights come from, what trains in their place, and its size from scratch."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, at_least, require

Linear = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The policy."""

    path: Path | None = None
    """Hugging Face directory (config.json, tokenizer, safetensors) the policy starts from, what
    `gigpo-mega convert import` made of one, or the id of a model on the hub: Qwen/Qwen2.5-1.5B-Instruct."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameter type of learner and engine."""
    layers: Literal["auto", "local", "te"] = "auto"
    """Layer specification: Transformer Engine in bfloat16 if it is installed (auto), or our own layers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(
            self.layers != "te" or self.dtype != "float32",
            "model.layers te rounds products of float32 to TF32; set it to auto or local, or model.dtype to "
            "bfloat16",
        )
        return self


@dataclass(frozen=True, config=STRICT)
class LoraConfig:
    """Low-rank adapters, trained in the place of the policy's own weights."""

    rank: int | None = None
    """Rank of the adapters; null trains all weights."""
    alpha: float | None = None
    """An adapter's product counts alpha / rank; null counts it once."""
    targets: list[Linear] = field(default_factory=lambda: list(get_args(Linear)))
    """Linear layers that get one: linear_qkv (query, key, value), linear_proj (attention's output),
    linear_fc1 (gate, up), linear_fc2 (down)."""

    @property
    def effective_alpha(self) -> float:
        """alpha, or the rank in its place."""
        return (self.rank or 1) if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.effective_alpha / (self.rank or 1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.rank is None or self.rank >= 1, f"lora.rank must be >= 1 or null, got {self.rank}")
        require(self.alpha is None or self.alpha > 0, f"lora.alpha must be > 0 or null, got {self.alpha}")
        require(bool(self.targets), "lora.targets is empty; lora.rank null trains all weights")
        return self


@dataclass(frozen=True, config=STRICT)
class ScratchConfig:
    """The small Qwen2 policy that a cold start makes if `model.path` is null."""

    vocabulary: int = 1024
    """Tokens of the tokenizer, which is trained on the games' text."""
    hidden: int = 96
    """Hidden size."""
    ffn: int = 256
    """Feed-forward size."""
    layers: int = 3
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 2
    """Key/value heads."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "scratch", self, "vocabulary", "hidden", "ffn", "layers", "heads", "kv_heads")
        for whole, name, size in (("hidden", "heads", self.heads), ("heads", "kv_heads", self.kv_heads)):
            require(
                getattr(self, whole) % size == 0,
                f"scratch.{name} {size} does not divide scratch.{whole} {getattr(self, whole)}",
            )
        return self
