"""Parameters of a Llama-shaped policy; those of the other families are variations of it."""

from __future__ import annotations

from gigpo_mega.weights.families.sharding import GATE_UP, QKV, REPLICATED, ROW, VOCAB, Table

# Outside of layers, the same in every family.
MODEL: Table = {
    "embedding.word_embeddings.weight": (VOCAB, {"model.embed_tokens.weight": "vocab hidden"}),
    "decoder.final_layernorm.weight": (REPLICATED, {"model.norm.weight": "hidden"}),
    "output_layer.weight": (VOCAB, {"lm_head.weight": "vocab hidden"}),
}
# Of one layer.
LLAMA: Table = {
    "self_attention.linear_qkv.layer_norm_weight": (REPLICATED, {"input_layernorm.weight": "hidden"}),
    "self_attention.linear_qkv.weight": (QKV, {
        "self_attn.q_proj.weight": "q hidden",
        "self_attn.k_proj.weight": "kv hidden",
        "self_attn.v_proj.weight": "kv hidden",
    }),
    "self_attention.linear_proj.weight": (ROW, {"self_attn.o_proj.weight": "hidden q"}),
    "mlp.linear_fc1.layer_norm_weight": (REPLICATED, {"post_attention_layernorm.weight": "hidden"}),
    "mlp.linear_fc1.weight": (GATE_UP, {
        "mlp.gate_proj.weight": "ffn hidden",
        "mlp.up_proj.weight": "ffn hidden",
    }),
    "mlp.linear_fc2.weight": (ROW, {"mlp.down_proj.weight": "hidden ffn"}),
}  # fmt: skip
