"""What all parts start from: a random policy of Qwen2.5-0.5B's shape, or a narrow one, and random rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gigpo_mega.config import Config, ModelConfig, WeightsConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.learner import Learner
from gigpo_mega.planning.shapes import find
from gigpo_mega.shape import ModelShape
from gigpo_mega.stack import Stack
from tools.bench.learner import CPU_WORK, CUDA_WORK, Work, cpu_shape, random_learner


class Wrong(UserError):
    """What a part saw is not as it must be; the message says what."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Where a part runs, and how large its policy is."""

    stack: Stack
    small: bool
    folder: Path  # for what the part writes

    @property
    def shape(self) -> ModelShape:
        """The policy's."""
        return cpu_shape() if self.small else find("qwen2.5-0.5b")

    @property
    def dtype(self) -> str:
        """The type of its parameters."""
        return "bfloat16" if self.stack.cuda and not self.small else "float32"

    @property
    def work(self) -> Work:
        """Rows of an update."""
        return CPU_WORK if self.small else CUDA_WORK

    @property
    def config(self) -> Config:
        """One update an iteration; the log-probabilities of its random rows are nobody's."""
        model = ModelConfig(dtype=self.dtype)  # type: ignore[arg-type]
        made = Config(model=model, weights=WeightsConfig(max_logprob_gap=1e6))
        batch = replace(made.batch, rows_per_update=None, microbatch_tokens=self.work.microbatch)
        return replace(made, batch=batch, objective=replace(made.objective, kl_coef=0.0))

    @contextmanager
    def layout(self) -> Iterator[Layout]:
        """A world of this process."""
        if not self.stack.cuda:
            torch.set_num_threads(1)
        cfg = self.config
        try:
            yield layouts.initialize(cfg.parallel, cfg.seed)
        finally:
            layouts.shutdown()

    def learner(self, layout: Layout, cfg: Config | None = None) -> Learner:
        """A learner with random weights, the same ones every time."""
        return random_learner(cfg or self.config, self.shape, layout)

    def describe(self, directory: Path) -> Path:
        """A Hugging Face directory of the policy without weights or tokenizer."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(_config(self.shape, self.dtype)))
        return directory


def _config(shape: ModelShape, dtype: str) -> dict[str, Any]:
    assert shape.family == "qwen2"
    assert shape.hidden == shape.heads * shape.head_dim
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
