"""Layers of the `local` specification: what Transformer Engine gives on a GPU, in torch, on any device."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gigpo_mega.cpu import megatron as cpu_megatron

cpu_megatron.install()

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.transformer.attention import SelfAttentionSubmodules  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec  # noqa: E402
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules  # noqa: E402
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint  # noqa: E402


class RMSNorm(nn.Module):
    """RMSNorm whose gradient megatron sums over the tensor-parallel group under sequence parallelism.

    x [..., H] -> [..., H].
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010  read by finalize_model_grads

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        tensors = self.state_dict(keep_vars=True)
        return make_sharded_tensors_for_checkpoint(tensors, prefix, {}, sharded_offsets)


class CausalAttention(nn.Module):
    """Causal grouped-query core attention on torch SDPA.

    query [s, b, heads, d], key and value [s, b, kv_heads, d] -> [s, b, heads * d]. Padding stands on the
    right, where a causal mask already hides it, so no mask is ever built.
    """

    def __init__(self, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__()
        self.scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def local_block(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The transformer block of `config.num_layers` layers built from this module's norm and attention."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    parts = cast(TransformerLayerSubmodules, layer.submodules)
    attention = cast(SelfAttentionSubmodules, cast(ModuleSpec, parts.self_attention).submodules)
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention.core_attention = CausalAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules([layer] * config.num_layers, layer_norm=ModuleSpec(RMSNorm))
