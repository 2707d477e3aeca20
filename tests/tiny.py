"""Tiny policies and rows that several tests share; all random, all from a stated seed."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from random import SystemRandom
from typing import Any

import numpy as np

from gigpo_mega.types import Step

QWEN2: dict[str, Any] = {
    "vocab_size": 203, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip


def write_policy(directory: Path, family: str = "qwen2", seed: int = 0, **changes: Any) -> Path:
    """A random policy of `family` as a Hugging Face directory, written by transformers itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    policy: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **QWEN2 | changes))
    for name, parameter in policy.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    policy.float().save_pretrained(directory)
    return directory


def random_steps(count: int, vocab: int = 203, seed: int = 0) -> tuple[Step, ...]:
    """Steps of uneven lengths with random ids, rewards and log-probs."""
    rng = np.random.default_rng(seed)
    return tuple(
        Step(
            prompt_ids=rng.integers(0, vocab, rng.integers(5, 40)).astype(np.int32),
            response_ids=rng.integers(0, vocab, (size := int(rng.integers(1, 6)))).astype(np.int32),
            logprobs=(-5 - rng.random(size)).astype(np.float32),
            reward=float(rng.integers(0, 2)),
            valid=bool(rng.integers(0, 2)),
            anchor=rng.bytes(16),
            versions=np.zeros(size, np.int32),
            observation=f"room {rng.integers(5)}",
            action="look",
        )
        for _ in range(count)
    )


def write_agent(directory: Path, seed: int = 0) -> Path:
    """A random policy together with a tokenizer that knows a few ALFWorld words."""
    from gigpo_mega.coldstart.vocabulary import train_tokenizer

    words = ("go to desk 1, take mug 1 from desk 1, open drawer 1", "On the desk 1, you see a mug 1.")
    size = train_tokenizer(words * 4, 400, directory)
    write_policy(
        directory, seed=seed, vocab_size=-(-size // 8) * 8, max_position_embeddings=512, eos_token_id=1
    )
    return directory


def free_port() -> int:
    """A free TCP port of this machine, below those that the system gives to programs that ask for any."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", SystemRandom().randrange(10_000, max(first, 30_000))))
            return int(probe.getsockname()[1])
