"""From a Hugging Face configuration to a megatron-core policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gigpo_mega.batching import Cost
from gigpo_mega.config import Config, LoraConfig, ParallelConfig
from gigpo_mega.cpu import megatron as cpu_megatron
from gigpo_mega.errors import UserError
from gigpo_mega.learner import lora
from gigpo_mega.learner.context import Columns
from gigpo_mega.learner.layers import local_block
from kernels.logprob import Backend, linear_logprob

cpu_megatron.install()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.tensor_parallel import (  # noqa: E402
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

_FAMILIES = {"qwen2": True, "qwen3": False, "llama": False}  # model_type -> bias on q, k and v
# Options of these families that would be computed wrongly in silence: attention_bias puts one on o_proj too.
_ONLY = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu"}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that define a dense decoder-only policy (Qwen2, Qwen3 or Llama shape)."""

    family: str
    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    norm_epsilon: float
    max_positions: int
    tied: bool
    qkv_bias: bool

    @classmethod
    def from_hf(cls, directory: Path) -> ModelShape:
        """Read a Hugging Face directory's config.json; raises UserError where it is absent or unsupported."""
        path = directory / "config.json"
        try:
            hf: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            wanted = "give a Hugging Face model directory"
            raise UserError(f"model.path: {path} does not exist; {wanted}") from None
        except (ValueError, OSError) as error:
            raise UserError(f"model.path: cannot read {path}: {error}") from None
        family = hf.get("model_type", "")
        if family not in _FAMILIES:
            known = ", ".join(_FAMILIES)
            raise UserError(f"model.path: {path} has model_type {family!r}; supported: {known}")
        # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
        rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise UserError(f"model.path: {path} asks for rope_scaling {rope}, which is not supported")
        for field, value in _ONLY.items():
            if hf.get(field, value) != value:
                raise UserError(f"model.path: {path} has {field} {hf[field]!r}; supported: {value!r}")
        theta = hf.get("rope_theta") or rope.get("rope_theta", 10000.0)
        return cls(
            family=family,
            vocab=hf["vocab_size"],
            hidden=hf["hidden_size"],
            ffn=hf["intermediate_size"],
            layers=hf["num_hidden_layers"],
            heads=hf["num_attention_heads"],
            kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
            head_dim=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
            rope_theta=float(theta),
            norm_epsilon=hf["rms_norm_eps"],
            max_positions=hf["max_position_embeddings"],
            tied=bool(hf.get("tie_word_embeddings", False)),
            qkv_bias=_FAMILIES[family],
        )

    @property
    def qk_norm(self) -> bool:
        """True where queries and keys are normalised, head by head, before they are rotated."""
        return self.family == "qwen3"

    def padded_vocab(self, tensor: int) -> int:
        """Vocabulary rows after padding to a multiple of the tensor-parallel size."""
        return -(-self.vocab // tensor) * tensor

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(width of the input, of the output) of each linear layer of a transformer layer."""
        attention = self.heads * self.head_dim
        return {
            "linear_qkv": (self.hidden, attention + 2 * self.kv_heads * self.head_dim),
            "linear_proj": (attention, self.hidden),
            "linear_fc1": (self.hidden, 2 * self.ffn),
            "linear_fc2": (self.ffn, self.hidden),
        }

    @property
    def cost(self) -> Cost:
        """What a sequence costs, in multiply-adds of a forward pass."""
        attention = self.heads * self.head_dim
        linear = sum(wide * high for wide, high in self.linears.values())
        return Cost(
            token=self.layers * linear, pair=self.layers * attention, response=self.vocab * self.hidden
        )

    def check_tensor(self, tensor: int) -> None:
        """Raise UserError where a tensor-parallel size does not divide this shape."""
        sizes = {"attention heads": self.heads, "key/value heads": self.kv_heads, "ffn": self.ffn}
        for name, size in sizes.items():
            if size % tensor:
                raise UserError(
                    f"parallel.tensor {tensor} does not divide the model's {size} {name}; "
                    f"choose a divisor of {size}"
                )

    def check_layout(self, parallel: ParallelConfig) -> None:
        """Raise UserError where `parallel` does not divide this shape."""
        self.check_tensor(parallel.tensor)
        if self.layers % (parallel.pipeline * parallel.virtual_pipeline):
            raise UserError(
                f"parallel.pipeline {parallel.pipeline} x parallel.virtual_pipeline "
                f"{parallel.virtual_pipeline} does not divide the model's {self.layers} layers; "
                f"choose a divisor of {self.layers}"
            )

    def check_lora(self, lora: LoraConfig) -> None:
        """Raise UserError where adapters would be no smaller than the layers that they adapt."""
        for name in lora.targets if lora.rank else []:
            smaller = min(self.linears[name])
            if lora.rank is not None and lora.rank > smaller:
                raise UserError(
                    f"lora.rank {lora.rank} exceeds the {smaller} of the model's {name}, which then has full "
                    f"rank; choose at most {smaller}, or null to train all weights"
                )


_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def transformer_config(shape: ModelShape, cfg: Config) -> lora.AdaptedConfig:
    """megatron's configuration of a policy of `shape`; fusions that need CUDA kernels stay off."""
    dtype, parallel = getattr(torch, cfg.model.dtype), cfg.parallel
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
        gradient_accumulation_fusion=False,
        use_cpu_initialization=True,
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


class PolicyModel(GPTModel):
    """Layers of a GPT; with the last of them, the log-probability and entropy of chosen tokens.

    Logits of all positions are never made.
    """

    unpadded_vocab: int
    temperature: float
    backend: Backend  # of its log-probabilities

    def _preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        packed_seq_params: PackedSeqParams | Columns | None = None,
        **rest: Any,
    ) -> tuple[Any, ...]:
        """Embeddings (first stage), and rotary angles by `position_ids` [b, s], equal in every row.

        megatron derives angles from column numbers and cuts packed sequences out one by one in each layer.
        """
        if isinstance(packed_seq_params, PackedSeqParams):  # Transformer Engine's
            return super()._preprocess(input_ids, position_ids, packed_seq_params=packed_seq_params, **rest)
        embedded = self.embedding(input_ids, position_ids) if self.pre_process else None
        if embedded is not None and torch.is_grad_enabled() and self.config.recompute_granularity == "full":
            embedded.requires_grad_()  # a layer that is recomputed has gradients only where its input has
        frequencies = self.rotary_pos_emb.inv_freq.to(position_ids.device)
        angles = torch.outer(position_ids[0].to(frequencies.dtype), frequencies)
        return embedded, torch.cat([angles, angles], dim=-1)[:, None, None, :], None, None, None, None

    # megatron's forward passes every argument by name; of its seventeen we read three.
    def _postprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, labels: Tensor | None, loss_mask: Tensor, **_: Any
    ) -> Tensor:
        """hidden [s, b, H] -> [2, n]: log-probability and entropy where loss_mask [b, s] is set, row-major.

        Without labels, the logits [b, s, V] of this rank's vocabulary shard (for comparison with other
        stacks). Before the last stage, `hidden` as it is.
        """
        if not self.post_process:
            return hidden_states
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        assert weight is not None, "this rank holds no output layer"
        tensor_group = self.pg_collection.tp
        hidden = hidden_states
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=tensor_group)
        hidden = hidden.transpose(0, 1)
        if labels is None:
            return F.linear(hidden, weight)
        chosen = hidden[loss_mask]
        if not self.config.sequence_parallel:
            # After the selection: megatron's all-reduce of the gradient is lost on a non-contiguous tensor.
            chosen = copy_to_tensor_model_parallel_region(chosen, group=tensor_group)
        logprob, entropy = linear_logprob(
            chosen,
            weight,
            labels[loss_mask],
            temperature=self.temperature,
            vocab_start=tensor_group.rank() * weight.shape[0],
            vocab_size=self.unpadded_vocab,
            group=tensor_group if tensor_group.size() > 1 else None,
            backend=self.backend,
        )
        return torch.stack([logprob, entropy])


class Policy(nn.ModuleList):
    """What this rank holds of a policy: the chunks of its pipeline stage, one unless that is interleaved."""

    def __iter__(self) -> Iterator[PolicyModel]:
        return cast(Iterator[PolicyModel], super().__iter__())

    @property
    def config(self) -> TransformerConfig:
        """megatron's configuration, one object for all chunks."""
        return next(iter(self)).config


def build_model(shape: ModelShape, cfg: Config) -> Policy:
    """A policy of `shape`, split as `cfg.parallel` says, on this rank's device.

    Its weights are random; its adapters change nothing yet. `rollout.temperature` divides the logits of every
    log-probability, as it did when the engine sampled. Raises UserError where the layout does not divide the
    shape, or adapters do not fit it.
    """
    parallel = cfg.parallel
    shape.check_layout(parallel)
    shape.check_lora(cfg.lora)
    config = transformer_config(shape, cfg)

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
            rotary_base=int(shape.rope_theta),
            vp_stage=stage,
        )
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


def uses_transformer_engine(cfg: Config) -> bool:
    """True where Transformer Engine's layers are used: if they are asked for, or there (auto); adapters have
    layers of ours."""
    if cfg.model.layers == "auto":
        return cfg.lora.rank is None and _has_transformer_engine()
    return cfg.model.layers == "te"


def _block(config: TransformerConfig, cfg: Config, vp_stage: int | None) -> Any:
    if uses_transformer_engine(cfg):
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    return local_block(config, vp_stage, cfg.lora)


def _has_transformer_engine() -> bool:
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return torch.cuda.is_available() and HAVE_TE
