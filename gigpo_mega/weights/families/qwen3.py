"""Parameters of a dense Qwen3 layer: Llama's, with norms on the heads of query and key."""

from __future__ import annotations

from gigpo_mega.weights.families.llama import LLAMA
from gigpo_mega.weights.families.sharding import REPLICATED, Table

QWEN3: Table = LLAMA | {
    "self_attention.q_layernorm.weight": (REPLICATED, {"self_attn.q_norm.weight": "head"}),
    "self_attention.k_layernorm.weight": (REPLICATED, {"self_attn.k_norm.weight": "head"}),
}
