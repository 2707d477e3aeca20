"""Shapes of models known by name, so that a run can be planned without their files."""

from __future__ import annotations

import re
from pathlib import Path

from gigpo_mega import hub
from gigpo_mega.errors import UserError
from gigpo_mega.shape import ModelShape


def _qwen(
    family: str,
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    head_dim: int = 128,
    vocab: int = 151936,
    tied: bool = True,
) -> ModelShape:
    return ModelShape(
        family=family,
        vocab=vocab,
        hidden=hidden,
        ffn=ffn,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=1e6,
        norm_epsilon=1e-6,
        max_positions=32768,
        tied=tied,
        qkv_bias=family == "qwen2",
    )


# The config.json of each model in the Qwen organization of the Hugging Face hub, base and Instruct alike.
NAMED: dict[str, ModelShape] = {
    "qwen2.5-0.5b": _qwen("qwen2", 896, 4864, 24, 14, 2, head_dim=64),
    "qwen2.5-1.5b": _qwen("qwen2", 1536, 8960, 28, 12, 2),
    "qwen2.5-3b": _qwen("qwen2", 2048, 11008, 36, 16, 2),
    "qwen2.5-7b": _qwen("qwen2", 3584, 18944, 28, 28, 4, vocab=152064, tied=False),
    "qwen2.5-14b": _qwen("qwen2", 5120, 13824, 48, 40, 8, vocab=152064, tied=False),
    "qwen3-0.6b": _qwen("qwen3", 1024, 3072, 28, 16, 8),
    "qwen3-1.7b": _qwen("qwen3", 2048, 6144, 28, 16, 8),
    "qwen3-4b": _qwen("qwen3", 2560, 9728, 36, 32, 8),
    "qwen3-8b": _qwen("qwen3", 4096, 12288, 36, 32, 8, tied=False),
}


def find(model: str | Path) -> ModelShape:
    """The shape of a Hugging Face directory, of the known model that `model` is named after, or of a hub id.

    `models/Qwen2.5-7B-Instruct` is read if it exists, and otherwise taken for qwen2.5-7b. Raises UserError
    if it is none of them.
    """
    directory = Path(model)
    name = re.sub(r"-(instruct|base)$", "", directory.name.lower())
    if not directory.is_dir() and name in NAMED:
        return NAMED[name]
    found = hub.directory(directory, weights=False)
    if not found.is_dir():
        raise UserError(f"--model: {model} is no directory and no known model; known: {', '.join(NAMED)}")
    return ModelShape.from_hf(found)
