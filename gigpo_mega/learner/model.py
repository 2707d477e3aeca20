"""From a Hugging Face configuration to a megatron-core policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from gigpo_mega.config import Config
from gigpo_mega.learner import lora
from gigpo_mega.learner.head import PolicyModel
from gigpo_mega.learner.layers import local_block
from gigpo_mega.learner.rope import rope
from gigpo_mega.learner.stack import stack
from gigpo_mega.shape import ModelShape

_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
_DRAWING = ("init_method", "output_layer_init_method", "embedding_init_method")


def transformer_config(shape: ModelShape, cfg: Config, empty: bool = False) -> lora.AdaptedConfig:
    """megatron's configuration of a policy of `shape`; of the fusions those that `stack` has are on.

    Drawn on the CPU, weights are the same in every layout; `empty` leaves them as the device's memory is.
    """
    dtype, parallel, used = getattr(torch, cfg.model.dtype), cfg.parallel, stack(cfg)
    # Not by perform_initialization: without it megatron does not mark which parameters are split.
    draw = dict.fromkeys(_DRAWING, lambda _: None) if empty else {}
    return lora.AdaptedConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_epsilon,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        persist_layer_norm=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=used.gradient_fusion,
        apply_rope_fusion=used.rope_fusion,
        use_cpu_initialization=not empty,
        **draw,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=(
            parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
        ),
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence_parallel,
        variable_seq_lengths=parallel.pipeline > 1,
        moe_token_dispatcher_type="alltoall",  # megatron's condition for variable lengths, experts or not
        deallocate_pipeline_outputs=True,
        **_RECOMPUTE[parallel.recompute],
        batch_p2p_comm=False,
        cuda_graph_scope=[],  # its default warns that it is deprecated
        # Our loss returns (sum, tokens): the denominator is the tokens of all ranks and micro-batches.
        calculate_per_token_loss=True,
        lora_rank=cfg.lora.rank or 0,
        lora_scale=cfg.lora.scale,
    )


class Policy(nn.ModuleList):
    """What this rank holds of a policy: the chunks of its pipeline stage, one unless that is interleaved."""

    def __iter__(self) -> Iterator[PolicyModel]:
        return cast(Iterator[PolicyModel], super().__iter__())

    @property
    def config(self) -> TransformerConfig:
        """megatron's configuration, one object for all chunks."""
        return next(iter(self)).config


def build_model(shape: ModelShape, cfg: Config, empty: bool = False) -> Policy:
    """A policy of `shape`, split as `cfg.parallel` says, on this rank's device.

    Its weights are random, or with `empty` to be loaded; its adapters change nothing yet.
    `rollout.temperature` divides the logits of every log-probability, as it did when the engine sampled.
    Raises UserError if the layout does not divide the shape, or adapters do not fit it.
    """
    parallel = cfg.parallel
    shape.check_layout(parallel)
    shape.check_lora(cfg.lora)
    config = transformer_config(shape, cfg, empty)
    frequencies, magnitude = rope(shape)
    if magnitude != 1:  # on rotated queries and on rotated keys: the scores have its square
        config.softmax_scale = magnitude**2 * shape.head_dim**-0.5

    def chunk(stage: int | None) -> PolicyModel:
        made = PolicyModel(
            config=config,
            transformer_layer_spec=_block(config, cfg, stage),
            vocab_size=shape.padded_vocab(parallel.tensor),
            max_sequence_length=shape.max_positions,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            parallel_output=True,
            share_embeddings_and_output_weights=shape.tied,
            position_embedding_type="rope",
            vp_stage=stage,
        )
        made.rotary_pos_emb.inv_freq = frequencies
        made.unpadded_vocab = shape.vocab
        made.temperature = cfg.rollout.temperature
        made.backend = cfg.kernels.backend
        return made

    chunks = range(parallel.virtual_pipeline) if parallel.virtual_pipeline > 1 else [None]
    policy = Policy(chunk(stage) for stage in chunks)
    if cfg.lora.rank:
        lora.freeze(policy)
        for name, layer in lora.layers(policy):
            layer.reset(name, cfg.seed, parallel_state.get_tensor_model_parallel_rank())
    return policy.to(torch.device("cuda")) if torch.cuda.is_available() else policy


def _block(config: TransformerConfig, cfg: Config, vp_stage: int | None) -> Any:
    if stack(cfg).layers == "te":
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    return local_block(config, vp_stage, cfg.lora)
