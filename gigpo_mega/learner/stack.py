"""What the learner computes with: whose layers, optimizer and fused kernels, of those that are installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.extensions import transformer_engine
from megatron.core.package_info import __version__
from megatron.core.tensor_parallel import layers as linear

from gigpo_mega.config import Config
from gigpo_mega.errors import UserError
from gigpo_mega.learner import torch_adam

_LAYERS = {
    "te": "Transformer Engine's layers and attention",
    "local": "our own layers, attention by torch (SDPA)",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """What a configuration leaves to the machine."""

    layers: Literal["te", "local"]
    gradient_fusion: bool  # weight gradients are added to the data-parallel buffers within their product

    @property
    def rope_fusion(self) -> bool:
        """Whether one kernel rotates queries; megatron's other way waits for the GPU in every layer."""
        return self.layers == "te"

    def described(self, optimizer: Any) -> str:
        """One line on what was taken; `optimizer` is megatron's."""
        adam = torch_adam.parts(optimizer)[0].optimizer
        library = type(adam).__module__.partition(".")[0]
        fused = {
            "RoPE": self.rope_fusion,
            "weight gradients": self.gradient_fusion,
            "Adam": library != "torch" or bool(adam.param_groups[0].get("fused")),
        }
        names = ", ".join(name for name, on in fused.items() if on) or "nothing"
        return f"learner: {_LAYERS[self.layers]}; {type(adam).__name__} of {library}; fused: {names}"


def stack(cfg: Config) -> Stack:
    """What `cfg` gets here: Transformer Engine on request, or if it works (auto) and is as exact as the type.

    Adapters have our layers, and so has float32: Transformer Engine rounds its products to TF32, whose gap to
    the engine's log-probabilities is near the limit of `update.py`. Raises UserError if Transformer Engine is
    asked for and cannot be used.
    """
    cuda, installed = torch.cuda.is_available(), transformer_engine.HAVE_TE
    if cfg.model.layers == "te" and not (cuda and installed):
        reason = "needs a GPU, and there is none here"
        if cuda:
            reason = f"needs a Transformer Engine that megatron-core {__version__} can import"
        raise UserError(f"model.layers te {reason} (docs/gpu.md); set it to local or auto")
    exact = cfg.model.dtype == "bfloat16"
    te = cuda and installed and exact and cfg.model.layers != "local" and cfg.lora.rank is None
    # Of apex alone: megatron's head asks for its kernel even if all layers are Transformer Engine's.
    apex: Any = linear
    return Stack("te" if te else "local", cuda and apex._grad_accum_fusion_available)
