"""The measurement behind tools/bench_transports.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from gigpo_mega.config import EngineConfig, WeightsConfig
from gigpo_mega.rollout.engines.server import SGLangServer
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.push import Pushed, WeightPush
from gigpo_mega.weights.transport.base import NamedTensor

Transport = Literal["tensor", "broadcast", "disk"]
TRANSPORTS: tuple[Transport, ...] = ("tensor", "broadcast", "disk")


def bench(folder: Path, layers: int, bucket_mib: int, repeats: int) -> dict[str, Any]:
    """Seconds and GiB/s of pushes to a server of one rank, and of two, by transport.

    The server's weights are proven after each push.
    """
    model = _write_policy(folder / "model", layers)
    weights, shape = list(load_file(model / "model.safetensors").items()), ModelShape.from_hf(model)

    def measured(ranks: int) -> dict[str, Any]:
        engine = EngineConfig(max_total_tokens=512, tensor=ranks)
        with SGLangServer(model, engine, folder / f"sglang_{ranks}.log") as server:
            return {transport: row(server.url, transport) for transport in TRANSPORTS}

    def row(url: str, transport: Transport) -> dict[str, Any]:
        checked, unchecked = (
            _pushes(
                WeightPush(
                    WeightsConfig(transport=transport, bucket_mib=bucket_mib, checksums=checksums),
                    shape,
                    [url],
                    folder / "weights",
                ),
                weights,
                repeats,
            )
            for checksums in (True, False)
        )
        return _row(checked, unchecked)

    size = sum(tensor.nbytes for _, tensor in weights)
    described = {"policy_mib": round(size / 2**20, 1), "dtype": "float32"}
    return {**described, "transports": measured(1), "two_ranks": measured(2)}


def _pushes(push: WeightPush, weights: Sequence[NamedTensor], repeats: int) -> list[Pushed]:
    """The first push, which imports and connects, is not one of them."""
    return [push.push(weights, version) for version in range(repeats + 1)][1:]


def _row(checked: Sequence[Pushed], unchecked: Sequence[Pushed]) -> dict[str, Any]:
    best = min(checked, key=lambda pushed: pushed.seconds)
    return {
        "seconds": round(best.seconds, 4),
        "gib_per_s": round(best.metrics["weights/push_gib_per_s"], 3),
        "ceiling_gib_per_s": round(best.ceiling, 3),
        "unchecked_seconds": round(min(pushed.seconds for pushed in unchecked), 4),
        "all_seconds": [round(pushed.seconds, 4) for pushed in checked],
        "all_unchecked_seconds": [round(pushed.seconds, 4) for pushed in unchecked],
    }


def _write_policy(directory: Path, layers: int) -> Path:
    """A random Qwen2 of about 3.2 million parameters a layer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2", vocab_size=1024, hidden_size=512, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).float().save_pretrained(directory)
    return directory
