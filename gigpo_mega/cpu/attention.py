"""SGLang's "torch_native" attention without its loop over requests: padded batches of similar length.

The stock backend runs about a dozen small torch calls for each request and layer; with dozens of short
requests that is most of a step. Here the plan of a forward pass (which tokens, which cache slots, who may see
whom) is made once for all layers, and a layer is a few calls per batch. Layers with a sliding window or cross
attention go to the stock backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import scaled_dot_product_attention

SCORES = 1 << 17  # entries of a batch's padded score matrix of one head: more would fall out of the cache
WASTE = 1.5  # a batch may be padded to this many times the scores it needs


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests of similar length, padded to Q query and L cached tokens; G query heads share a key head."""

    tokens: torch.Tensor  # int64 [B * Q] rows of the query; padding repeats row 0
    real: torch.Tensor  # int64 [T] positions in `tokens` of the rows that are not padding
    targets: torch.Tensor  # int64 [T] the rows themselves
    slots: torch.Tensor  # int64 [B * L] cache slots; what lies beyond a request's length is masked
    mask: torch.Tensor  # [B, 1, G * Q, L] 0 for keys that a query token may attend to, else -inf


@dataclass(frozen=True, slots=True)
class _Requests:
    """The requests of a forward pass."""

    table: torch.Tensor  # [B, longest] cache slots of their tokens
    lengths: list[int]  # [B] tokens in the cache, the new ones included
    queries: list[int]  # [B] new tokens

    def plan(self, shared: int, dtype: torch.dtype) -> list[_Batch]:
        """Batches for layers whose key heads serve `shared` query heads each."""
        return [self._batch(members, shared, dtype) for members in cut(self.lengths, self.queries)]

    def _batch(self, members: list[int], shared: int, dtype: torch.dtype) -> _Batch:
        starts = [0, *accumulate(self.queries)]
        length = torch.tensor([self.lengths[i] for i in members])
        query = torch.tensor([self.queries[i] for i in members])
        start = torch.tensor([starts[i] for i in members])
        offsets = torch.arange(int(query.max()))
        real = offsets < query[:, None]
        tokens = torch.where(real, start[:, None] + offsets, 0)
        slots = self.table[members, : int(length.max())].long()
        position = (length - query)[:, None] + offsets  # of each query token within its request
        # Padded queries see what they like: their results are dropped.
        hidden = torch.arange(slots.shape[1]) > position[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
        return _Batch(
            tokens=tokens.flatten(),
            real=real.flatten().nonzero().flatten(),
            targets=tokens[real],
            slots=slots.flatten(),
            mask=mask.repeat(1, shared, 1)[:, None],
        )


class PaddedAttention(TorchNativeAttnBackend):
    """The stock backend, with `forward_extend` and `forward_decode` batched over requests."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._requests = _Requests(torch.empty(0, 0), [], [])
        self._plans: dict[tuple[int, torch.dtype], list[_Batch]] = {}

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Note the requests of the forward pass; its layers share the plans made from them."""
        super().init_forward_metadata(forward_batch)
        lengths = forward_batch.seq_lens.tolist()
        decode = forward_batch.forward_mode.is_decode()
        queries = [1] * len(lengths) if decode else forward_batch.extend_seq_lens.tolist()
        pool: Any = self.req_to_token_pool
        table = pool.req_to_token[forward_batch.req_pool_indices, : max(lengths, default=0)]
        self._requests = _Requests(table, lengths, queries)
        self._plans.clear()

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> torch.Tensor:
        """Attend from the new tokens of every request to all its tokens."""
        if not _plain(layer):
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> torch.Tensor:
        """Attend from the newest token of every request to all its tokens."""
        if not _plain(layer):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache)

    def _attend(self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save: bool) -> torch.Tensor:
        pool: Any = self.token_to_kv_pool
        if save and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = query.new_empty(query.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        key = (layer.tp_q_head_num // layer.tp_k_head_num, query.dtype)
        if key not in self._plans:
            self._plans[key] = self._requests.plan(*key)
        for batch in self._plans[key]:
            attended = _attention(query, keys, values, batch, layer.scaling)
            output.index_copy_(0, batch.targets, attended.index_select(0, batch.real))
        return output.view(query.shape[0], -1)


def _attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: _Batch, scale: float
) -> torch.Tensor:
    """Attend from the batch's rows of `query` [tokens, heads, D] to its slots of `keys` [slots, kv_heads, D].

    The query heads that share a key head become further query rows. Returns [B * Q, heads, D].
    """
    size, _, folded, cached = batch.mask.shape
    heads, kv_heads = query.shape[1], keys.shape[1]
    shared = heads // kv_heads
    rows = folded // shared
    # index_select copies whole rows; indexing with [] would be four times slower.
    chosen = query.index_select(0, batch.tokens).view(size, rows, kv_heads, shared, -1)
    out = scaled_dot_product_attention(
        chosen.permute(0, 2, 3, 1, 4).flatten(2, 3),
        _gather(keys, batch.slots, query.dtype).view(size, cached, kv_heads, -1).transpose(1, 2),
        _gather(values, batch.slots, query.dtype).view(size, cached, kv_heads, -1).transpose(1, 2),
        attn_mask=batch.mask,
        scale=scale,
    )
    unfolded = out.view(size, kv_heads, shared, rows, -1).permute(0, 3, 1, 2, 4)
    return unfolded.reshape(size * rows, heads, -1)


def _gather(cache: torch.Tensor, slots: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return cache.view(cache.shape[0], -1).index_select(0, slots).to(dtype)


def cut(lengths: list[int], queries: list[int]) -> list[list[int]]:
    """Indices of requests in batches of similar length, whose padded scores stay within SCORES and WASTE."""
    order = sorted(range(len(lengths)), key=lambda i: (queries[i], lengths[i]))
    batches: list[list[int]] = []
    widest = longest = needed = 0
    for i in order:
        grown = max(widest, queries[i]), max(longest, lengths[i]), needed + queries[i] * lengths[i]
        padded = grown[0] * grown[1] * (len(batches[-1]) + 1 if batches else 1)
        if batches and padded <= min(SCORES, WASTE * grown[2]):
            batches[-1].append(i)
            widest, longest, needed = grown
        else:
            batches.append([i])
            widest, longest, needed = queries[i], lengths[i], queries[i] * lengths[i]
    return batches


def _plain(layer: Any) -> bool:
    windowed = layer.sliding_window_size is not None and layer.sliding_window_size > -1
    return not (windowed or layer.is_cross_attention or layer.attn_type == AttentionType.ENCODER_ONLY)
