"""Parameters of a Qwen2 or Qwen2.5 layer: Llama's, with biases on query, key and value."""

from __future__ import annotations

from gigpo_mega.weights.families.llama import LLAMA
from gigpo_mega.weights.families.sharding import QKV, Table

QWEN2: Table = LLAMA | {
    "self_attention.linear_qkv.bias": (QKV, {
        "self_attn.q_proj.bias": "q",
        "self_attn.k_proj.bias": "kv",
        "self_attn.v_proj.bias": "kv",
    }),
}  # fmt: skip
