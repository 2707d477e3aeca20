"""The padded CPU attention against SGLang's own, and how it cuts requests into batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gigpo_mega.cpu import stubs

pytestmark = pytest.mark.engine  # needs sglang, though no server

HEADS, KV_HEADS, DIM, SLOTS = 6, 2, 8, 4096


class FakePool:
    """A cache of one layer that was written before."""

    def __init__(self, generator: torch.Generator) -> None:
        self.key, self.value = torch.randn(2, SLOTS, KV_HEADS, DIM, generator=generator)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.key

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.value


def forward(
    decode: bool, queries: list[int], lengths: list[int], seed: int
) -> tuple[Any, Any, torch.Tensor, Any]:
    """A fake runner, a fake forward batch of such requests, its query and a layer."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(SLOTS, generator=generator).to(torch.int32)
    table = torch.stack([order.roll(97 * i)[: max(lengths) + 3] for i in range(len(lengths) + 2)])
    runner = SimpleNamespace(
        device="cpu",
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        token_to_kv_pool=FakePool(generator),
    )
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_decode=lambda: decode),
        seq_lens=torch.tensor(lengths),
        req_pool_indices=torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)],
        extend_seq_lens=torch.tensor(queries),
        extend_prefix_lens=torch.tensor(lengths) - torch.tensor(queries),
        encoder_lens=None,
        out_cache_loc=None,
    )
    layer = SimpleNamespace(
        layer_id=0, tp_q_head_num=HEADS, tp_k_head_num=KV_HEADS, qk_head_dim=DIM, v_head_dim=DIM, scaling=0.3,
        sliding_window_size=-1, is_cross_attention=False, attn_type=None,
    )  # fmt: skip
    return runner, batch, torch.randn(sum(queries), HEADS * DIM, generator=generator), layer


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_same_numbers_as_the_stock_backend(decode: bool, count: int) -> None:
    stubs.install()
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    from gigpo_mega.cpu.attention import PaddedAttention

    generator = torch.Generator().manual_seed(count)
    queries = [1] * count if decode else torch.randint(1, 60, (count,), generator=generator).tolist()
    prefixes = torch.randint(0, 90, (count,), generator=generator).tolist()
    lengths = [query + prefix for query, prefix in zip(queries, prefixes, strict=True)]
    runner, batch, query, layer = forward(decode, queries, lengths, seed=count)
    results = []
    for backend in (TorchNativeAttnBackend(runner), PaddedAttention(runner)):
        backend.init_forward_metadata(batch)
        attend = backend.forward_decode if decode else backend.forward_extend
        results.append(attend(query, None, None, layer, batch, save_kv_cache=False))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=2e-6)


def test_batches_hold_every_request_once_and_waste_little() -> None:
    stubs.install()
    from gigpo_mega.cpu.attention import SCORES, WASTE, cut

    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(1, 200, (100,), generator=generator).tolist()
    lengths = [query + 50 for query in queries]
    batches = cut(lengths, queries)
    assert sorted(i for members in batches for i in members) == list(range(100))
    assert len(batches) < 60
    for members in batches:
        padded = len(members) * max(queries[i] for i in members) * max(lengths[i] for i in members)
        assert padded <= WASTE * sum(queries[i] * lengths[i] for i in members)
        assert len(members) == 1 or padded <= SCORES
    assert cut([], []) == []
    assert cut([10**6], [10**6]) == [[0]]
