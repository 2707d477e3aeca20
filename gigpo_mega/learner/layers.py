"""Layers of the `local` specification: what Transformer Engine gives on a GPU, in torch, on any device."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from gigpo_mega.config import LoraConfig
from gigpo_mega.learner import lora
from gigpo_mega.learner.context import HeldColumns, Span


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
    """Causal grouped-query core attention on torch SDPA, one sequence after the other.

    query [s, b, heads, d], key and value [s, b, kv_heads, d] -> [s, b, heads * d]. `packed_seq_params` says
    which columns belong together; without it all s do. Under context parallelism s are this rank's columns,
    whose keys and values are gathered from its group. Padding stands on the right of its sequence, where a
    causal mask hides it.
    """

    def __init__(
        self, *_: Any, softmax_scale: float | None = None, pg_collection: Any = None, **__: Any
    ) -> None:
        super().__init__()
        self.scale = softmax_scale
        self.context_group = pg_collection.cp

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: Any = None, **__: Any
    ) -> Tensor:
        columns: HeldColumns = packed_seq_params or HeldColumns((Span(0, 0, len(query)),), (len(query),))
        if columns.order is not None:
            both = torch.cat([key, value], dim=-1)
            both = gather_from_sequence_parallel_region(both, group=self.context_group)[columns.order]
            key, value = both.chunk(2, dim=-1)
        # Split, not sliced: the gradient of every slice would be as large as the whole.
        keys, values = key.split(columns.lengths), value.split(columns.lengths)
        queries = query.split([span.end - span.start for span in columns.spans])
        each = len(columns.spans) // len(columns.lengths)
        outputs = [
            self._attend(queries[i], keys[i // each], values[i // each], span.end - span.first)
            for i, span in enumerate(columns.spans)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, seen: int) -> Tensor:
        """The last query sees the first `seen` keys, the one before it one less, and so on."""
        if seen < len(key):
            key, value = key[:seen], value[:seen]
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        square = len(query) == len(key)
        mask = None if square else causal_lower_right(len(query), len(key))
        out = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=square, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.permute(2, 0, 1, 3).flatten(2)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def local_block(
    config: TransformerConfig, vp_stage: int | None, adapters: LoraConfig
) -> TransformerBlockSubmodules:
    """This rank's layers of the (virtual) pipeline stage, built from this module's norm and attention."""
    # On Hopper torch would prefer cuDNN's attention, which compiles a plan for every length of a sequence.
    torch.backends.cuda.enable_cudnn_sdp(False)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    parts = cast(TransformerLayerSubmodules, layer.submodules)
    attention = cast(SelfAttentionSubmodules, cast(ModuleSpec, parts.self_attention).submodules)
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention.core_attention = CausalAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if adapters.rank:
        lora.adapt(parts, adapters)
    layers = get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules([layer] * layers, layer_norm=ModuleSpec(RMSNorm))
