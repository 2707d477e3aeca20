"""Do a Hugging Face directory and a checkpoint hold the same model? Every bit of it, and what it computes."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gigpo_mega.config import Config, ModelConfig
from gigpo_mega.errors import UserError
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.model import build_model
from gigpo_mega.shape import ModelShape
from gigpo_mega.telemetry.progress import stage
from gigpo_mega.weights.families.mapping import entries
from gigpo_mega.weights.huggingface import HFReader
from gigpo_mega.weights.live import load
from gigpo_mega.weights.sharded import ShardedReader

_SEQUENCES, _LENGTH, _SEED = 2, 64, 0


@dataclass(frozen=True, slots=True)
class LogitsGap:
    """How far the learner's logits are from those of transformers, both in float32.

    megatron-core adds a bias to a finished product, torch's linear while it multiplies: with biases,
    that alone makes a difference of float32's rounding. `biases_last` is without it.
    """

    max: float  # largest absolute difference
    biases_last: float  # the same, with transformers' biases added after the product too
    scale: float  # largest absolute logit
    tokens: int


def different(hf: Path, checkpoint: Path) -> list[str]:
    """The Hugging Face tensors whose type or bits differ between a directory and a checkpoint."""
    shape = ModelShape.from_hf(hf)
    theirs, ours = HFReader(hf), ShardedReader(checkpoint)
    theirs.check(shape)
    ours.check(shape)
    found: list[str] = []
    with stage("verify", sum(1 for _ in entries(shape)), "tensors") as bar:
        for entry in entries(shape):
            for name, tensor in zip(entry.hf, ours.separate(entry, shape), strict=True):
                if not same_bits(tensor, theirs.tensor(name)):
                    found.append(name)
            bar.advance()
    return found


def logits_gap(hf: Path, checkpoint: Path) -> LogitsGap:
    """Compare on random tokens transformers, which loads `hf`, and the learner, which loads `checkpoint`.

    Needs memory for two float32 copies of the model at most: the two are loaded one after the other.
    """
    shape = ModelShape.from_hf(hf)
    generator = torch.Generator().manual_seed(_SEED)
    size = (_SEQUENCES, min(_LENGTH, shape.max_positions))
    tokens = torch.randint(0, shape.vocab, size, generator=generator)
    theirs, biases_last = _transformers_logits(hf, tokens)
    gc.collect()
    ours = _learner_logits(checkpoint, shape, tokens)
    return LogitsGap(
        max=float((ours - theirs).abs().max()),
        biases_last=float((ours - biases_last).abs().max()),
        scale=float(theirs.abs().max()),
        tokens=tokens.numel(),
    )


@torch.no_grad()
def _transformers_logits(hf: Path, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As transformers computes them, and with every bias added after its product."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    except Exception as error:  # other people's code on other people's files
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"transformers cannot load {hf}: {reason}; compare with --bits-only") from error
    usual = model.eval()(tokens).logits
    functional: Any = torch.nn.functional
    linear = functional.linear

    def bias_last(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight) if bias is None else linear(x, weight) + bias

    functional.linear = bias_last
    try:
        return usual, model(tokens).logits
    finally:
        functional.linear = linear


@torch.no_grad()
def _learner_logits(checkpoint: Path, shape: ModelShape, tokens: Tensor) -> Tensor:
    cfg = Config(model=ModelConfig(dtype="float32"))
    layout = parallel.initialize(cfg.parallel, seed=0)
    try:
        policy = build_model(shape, cfg, empty=True)
        load(policy, shape, layout, checkpoint)
        (model,) = policy.eval()
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        logits = model(tokens.to(layout.device), positions.to(layout.device), None)
        return logits[..., : shape.vocab].cpu()
    finally:
        parallel.shutdown()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """True if type, shape and every bit are the same, NaN included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
