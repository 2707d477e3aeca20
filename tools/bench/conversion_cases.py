"""Models of real shapes, and the layouts that their checkpoints are cut for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and the layout that the files of its checkpoint are cut for."""

    name: str
    tensor: int
    pipeline: int
    virtual_pipeline: int = 1
    config: dict[str, Any] = field(default_factory=dict)  # empty: the real SmolLM2
    logits: bool = True


def _qwen(model_type: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int,
          tied: bool, **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocab, "tie_word_embeddings": tied, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu", "use_sliding_window": False,
        "dtype": "bfloat16",
    } | more  # fmt: skip


CASES = (
    Case("SmolLM2-135M-Instruct", tensor=3, pipeline=2),
    Case("Qwen2.5-0.5B", 2, 2, config=_qwen("qwen2", 896, 4864, 24, 14, 2, 151936, True)),
    Case("Qwen3-0.6B", 2, 2, 2, config=_qwen("qwen3", 1024, 3072, 28, 16, 8, 151936, True, head_dim=128)),
    Case("Qwen2.5-1.5B", 2, 2, config=_qwen("qwen2", 1536, 8960, 28, 12, 2, 151936, True)),
    Case("Qwen2.5-7B", 4, 2, config=_qwen("qwen2", 3584, 18944, 28, 28, 4, 152064, False), logits=False),
)
