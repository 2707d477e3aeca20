"""The numbers that define a policy, and what a sequence costs in it.

Needs neither torch nor megatron, so that a run can be checked and planned before anything heavy is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gigpo_mega.config import LoraConfig, ParallelConfig
from gigpo_mega.errors import UserError
from gigpo_mega.hf_config import HFConfig, RopeScaling
from gigpo_mega.types import Float64, Int64


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-adds of a sequence: linear layers, causal attention over half of the square, output layer."""

    token: float = 1.0  # of one column in all layers but attention's core
    pair: float = 0.0  # of one column for each column of its sequence
    response: float = 0.0  # of one response token in the output layer

    def of(self, columns: Int64, responses: Int64) -> Float64:
        """The cost of sequences with `columns` and `responses` tokens, elementwise."""
        return columns * (self.token + self.pair * columns) + self.response * responses


class Cut(Protocol):
    """How a policy is cut: by a run's `parallel`, or for a checkpoint by `gigpo-mega convert`."""

    @property
    def tensor(self) -> int: ...

    @property
    def pipeline(self) -> int: ...

    @property
    def virtual_pipeline(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that define a dense decoder-only policy (Qwen2, Qwen3 or Llama shape)."""

    family: str
    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    norm_epsilon: float
    max_positions: int
    tied: bool
    qkv_bias: bool
    rope_scaling: RopeScaling | None = None

    @classmethod
    def from_hf(cls, directory: Path) -> ModelShape:
        """Read a Hugging Face directory's config.json; raises UserError if it is absent or unsupported."""
        config = HFConfig(directory / "config.json")
        hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
        positions = config.size("max_position_embeddings")
        theta, scaling = config.rope(positions)
        made = cls(
            family=config.family,
            vocab=config.size("vocab_size"),
            hidden=hidden,
            ffn=config.size("intermediate_size"),
            layers=config.size("num_hidden_layers"),
            heads=heads,
            kv_heads=config.size_or("num_key_value_heads", heads),
            head_dim=config.size_or("head_dim", hidden // heads),
            rope_theta=theta,
            norm_epsilon=config.epsilon(),
            max_positions=positions,
            tied=config.tied(),
            qkv_bias=config.family == "qwen2",
            rope_scaling=scaling,
        )
        if made.family == "llama" and hidden % heads:  # what transformers asks for
            raise config.refusal("hidden_size", hidden, f"give a multiple of num_attention_heads {heads}")
        if heads % made.kv_heads:
            divisor = f"give a divisor of num_attention_heads {heads}"
            raise config.refusal("num_key_value_heads", made.kv_heads, divisor)
        if made.head_dim % 2 or not made.head_dim:
            raise config.refusal("head_dim", made.head_dim, "give an even number: RoPE rotates pairs")
        return made

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalized, head by head, before they are rotated."""
        return self.family == "qwen3"

    @property
    def described(self) -> str:
        """The sizes as config.json names them, for errors about a tensor that has none of them."""
        sizes = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }
        return ", ".join(f"{name} {size}" for name, size in sizes.items())

    def padded_vocab(self, tensor: int) -> int:
        """Vocabulary rows after padding to a multiple of the tensor-parallel size."""
        return -(-self.vocab // tensor) * tensor

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(width of the input, of the output) of each linear layer of a transformer layer."""
        attention = self.heads * self.head_dim
        return {
            "linear_qkv": (self.hidden, attention + 2 * self.kv_heads * self.head_dim),
            "linear_proj": (attention, self.hidden),
            "linear_fc1": (self.hidden, 2 * self.ffn),
            "linear_fc2": (self.ffn, self.hidden),
        }

    @property
    def cost(self) -> Cost:
        """What a sequence costs, in multiply-adds of a forward pass."""
        attention = self.heads * self.head_dim
        linear = sum(wide * high for wide, high in self.linears.values())
        return Cost(
            token=self.layers * linear, pair=self.layers * attention, response=self.vocab * self.hidden
        )

    def check_layout(self, cut: Cut, flags: bool = False) -> None:
        """Raise UserError if `cut` does not divide this shape; it names fields, or with `flags` the flags."""

        def named(size: str) -> str:
            return f"--{size.replace('_', '-')}" if flags else f"parallel.{size}"

        sizes = {"attention heads": self.heads, "key/value heads": self.kv_heads, "ffn": self.ffn}
        for name, size in sizes.items():
            if size % cut.tensor:
                raise UserError(
                    f"{named('tensor')} {cut.tensor} does not divide the model's {size} {name}; "
                    f"choose a divisor of {size}"
                )
        if self.layers % (cut.pipeline * cut.virtual_pipeline):
            raise UserError(
                f"{named('pipeline')} {cut.pipeline} x {named('virtual_pipeline')} {cut.virtual_pipeline} "
                f"does not divide the model's {self.layers} layers; choose a divisor of {self.layers}"
            )

    def check_engine(self, tensor: int) -> None:
        """Raise UserError if `tensor` ranks of an engine do not divide this shape.

        SGLang gives several ranks the same key/value head if there are fewer heads than ranks.
        """
        sizes = {"attention heads": self.heads, "ffn": self.ffn}
        if tensor < self.kv_heads:
            sizes["key/value heads"] = self.kv_heads
        elif tensor % self.kv_heads:
            raise UserError(
                f"engine.tensor {tensor} is no multiple of the model's {self.kv_heads} key/value heads; "
                f"choose one, or a divisor of {self.kv_heads}"
            )
        for name, size in sizes.items():
            if size % tensor:
                raise UserError(
                    f"engine.tensor {tensor} does not divide the model's {size} {name}; choose a divisor of "
                    f"{size}"
                )

    def check_lora(self, lora: LoraConfig) -> None:
        """Raise UserError if adapters would have a higher rank than the weights that they adapt can have."""
        for name in lora.targets if lora.rank else []:
            smaller = min(self.linears[name])
            if lora.rank is not None and lora.rank > smaller:
                raise UserError(
                    f"lora.rank {lora.rank} exceeds the {smaller} of the model's {name}, which is full rank; "
                    f"choose at most {smaller}, or null to train all weights"
                )


def check_world(cfg: ParallelConfig, world: int) -> None:
    """Raise UserError unless the sizes in `cfg` divide `world` processes."""
    sizes = {"tensor": cfg.tensor, "pipeline": cfg.pipeline, "context": cfg.context}
    fixed = math.prod(sizes.values())
    if world % fixed:
        product = " x ".join(f"{name} {size}" for name, size in sizes.items())
        fields = " or ".join(f"parallel.{name}" for name, size in sizes.items() if size > 1)
        raise UserError(
            f"parallel: {product} x data = world size {world} has no whole solution for data: "
            f"start a multiple of {fixed} processes or change {fields}"
        )
