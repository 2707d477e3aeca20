"""A policy's adapters as a directory that PEFT reads (`adapter_config.json`, `adapter_model.safetensors`)."""

from __future__ import annotations

import json
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from gigpo_mega.config import LoraConfig
from gigpo_mega.learner import lora
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.model import Policy
from gigpo_mega.shape import ModelShape
from gigpo_mega.storage.files import published
from gigpo_mega.weights.families.mapping import adapter_entries
from gigpo_mega.weights.live import Pipeline, gather


def save(
    policy: Policy, shape: ModelShape, layout: Layout, adapters: LoraConfig, base: Path, directory: Path
) -> None:
    """Write the adapters of a policy that was made from `base`; all ranks call this.

    PEFT has no merged layers: each part gets the shared A and its rows of B, which is exact. The directory
    appears whole or not at all.
    """
    tensors = _tensors(policy, shape, layout, adapters)
    if layout.leader:
        with published(directory, replace=True) as partial:
            save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
            names = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
            config = {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": str(base),
                "r": adapters.rank,
                "lora_alpha": adapters.effective_alpha,
                "lora_dropout": 0.0,
                "target_modules": names,
                "bias": "none",
                "inference_mode": True,
            }
            (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    dist.barrier()


def _tensors(policy: Policy, shape: ModelShape, layout: Layout, adapters: LoraConfig) -> dict[str, Tensor]:
    """PEFT's names and whole tensors, on every rank."""
    held = {
        f"{name}.{part}": getattr(layer, part).detach
        for name, layer in lora.layers(policy)
        for part in lora.NAMES
    }
    pipeline = Pipeline(held, layout, policy.config.params_dtype)
    assert adapters.rank is not None
    found: dict[str, Tensor] = {}
    for low, high in adapter_entries(shape, adapters.rank, adapters.targets):
        a, b = (p.layout.join(gather(pipeline.shard(p, layout.tensor), layout)) for p in (low, high))
        for name, rows in zip(high.hf, high.layout.separate(b, shape), strict=True):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            found[f"{module}.lora_A.weight"] = a.cpu().clone()
            found[f"{module}.lora_B.weight"] = rows.cpu().clone()
    return found
