"""The layers of one pipeline chunk; behind the last of them, log-probabilities instead of logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from gigpo_mega.learner.context import HeldColumns
from kernels.logprob import LogprobBackend, linear_logprob


class PolicyModel(GPTModel):
    """Layers of a GPT; with the last of them, the log-probability and entropy of chosen tokens.

    Logits of all positions are never made.
    """

    unpadded_vocab: int
    temperature: float
    backend: LogprobBackend  # of its log-probabilities

    def _preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        packed_seq_params: PackedSeqParams | HeldColumns | None = None,
        **rest: Any,
    ) -> tuple[Any, ...]:
        """Embeddings (first stage), and rotary angles by `position_ids` [b, s], equal in every row.

        megatron derives angles from column numbers and cuts packed sequences out one by one in each layer.
        """
        if isinstance(packed_seq_params, PackedSeqParams):  # Transformer Engine's
            return super()._preprocess(input_ids, position_ids, packed_seq_params=packed_seq_params, **rest)
        embedded = self.embedding(input_ids, position_ids) if self.pre_process else None
        if embedded is not None and torch.is_grad_enabled() and self.config.recompute_granularity == "full":
            embedded.requires_grad_()  # a layer that is recomputed has gradients only if its input has
        frequencies = self.rotary_pos_emb.inv_freq.to(position_ids.device)
        self.rotary_pos_emb.inv_freq = frequencies  # no buffer: it would be copied to the GPU each time
        angles = torch.outer(position_ids[0].to(frequencies.dtype), frequencies)
        return embedded, torch.cat([angles, angles], dim=-1)[:, None, None, :], None, None, None, None

    # megatron's forward passes every argument by name; of its seventeen we read three.
    def _postprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, labels: Tensor | None, loss_mask: Tensor, **_: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden [s, b, H] -> log-probability [n] and entropy [n] of `labels` [n].

        In place of a mask megatron hands through where, in [s x b], their hidden states stand (int64 [n]):
        to read that off a mask, the host would wait for the GPU. Two tensors: in one, a loss without entropy
        would give it a gradient of zeros, which costs as much as any other. Without labels, the logits
        [b, s, V] of this rank's vocabulary shard (for comparison with other stacks). Before the last stage,
        `hidden` as it is.
        """
        if not self.post_process:
            return hidden_states
        weight = self._output_weight()
        tensor_group = self.pg_collection.tp
        hidden = hidden_states
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=tensor_group)
        if labels is None:
            return F.linear(hidden.transpose(0, 1), weight)
        chosen = hidden.flatten(0, 1).index_select(0, loss_mask)
        if not self.config.sequence_parallel:
            # After the selection: megatron's all-reduce of the gradient is lost on a non-contiguous tensor.
            chosen = copy_to_tensor_model_parallel_region(chosen, group=tensor_group)
        return linear_logprob(
            chosen,
            weight,
            labels,
            temperature=self.temperature,
            vocab_start=tensor_group.rank() * weight.shape[0],
            vocab_size=self.unpadded_vocab,
            group=tensor_group if tensor_group.size() > 1 else None,
            backend=self.backend,
        )

    def _output_weight(self) -> Tensor:
        """This rank's rows of the output layer.

        The layer itself is never called, so what would wait for its weight, on the way from other ranks
        (`overlap_param_gather`), is called here.
        """
        for wait in self.output_layer._forward_pre_hooks.values():
            wait(self.output_layer, ())
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        assert weight is not None, "this rank holds no output layer"
        return weight
