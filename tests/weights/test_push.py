"""Pushing weights to a real server: exact, tagged, with the prefix cache flushed, and losses caught."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gigpo_mega.rollout.engine import Completion, Sampling
from gigpo_mega.rollout.sglang import SGLangEngine
from gigpo_mega.weights.push import PushError, WeightPusher, buckets, logprob_gap
from tests.conftest import Served
from tests.tiny import write_policy

PROMPTS = [[9, *range(20, 60), i] for i in range(3, 11)]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random policy of the same shape."""
    return write_policy(tmp_path_factory.mktemp("other"), seed=1)


def tensors(model: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(model / "model.safetensors")


def sample(url: str) -> list[Completion]:
    async def run() -> list[Completion]:
        async with SGLangEngine(url) as engine:
            sampling = Sampling(max_new_tokens=5)
            return await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in PROMPTS))

    return asyncio.run(run())


def gap(model: Path, completions: list[Completion]) -> float:
    """The largest difference of the engine's log-probs from those of `model`."""
    from transformers import Qwen2ForCausalLM

    policy: Any = Qwen2ForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rows = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion.response_ids.tolist()]])
        with torch.no_grad():
            logprobs = policy(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        rows.append(logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy())
    found = logprob_gap([completion.logprobs for completion in completions], rows)
    assert found.tokens == 5 * len(PROMPTS)
    assert found.mean <= found.max
    return found.max


@pytest.mark.engine
@pytest.mark.parametrize("bucket_bytes", [1 << 10, 1 << 30])
def test_a_push_changes_the_weights_exactly(served: Served, other: Path, bucket_bytes: int) -> None:
    before = sample(served.url)  # fills the prefix cache with the old weights' keys and values
    assert {completion.version for completion in before} == {0}
    assert gap(served.model, before) < 1e-5
    assert gap(other, before) > 1e-2
    pusher = WeightPusher(served.url)
    pusher._bucket_bytes = bucket_bytes
    pusher.push(iter(tensors(other).items()), version=7)
    after = sample(served.url)
    assert {completion.version for completion in after} == {7}
    assert gap(other, after) < 1e-5  # also says that no stale prefix was used
    assert all(completion.cached_tokens < len(PROMPTS[0]) for completion in after)


@pytest.mark.engine
def test_a_skipped_push_is_caught_by_the_version(served: Served, other: Path) -> None:
    pusher = WeightPusher(served.url)
    pusher.push(tensors(other).items(), version=1)
    pusher.verify(1)
    with pytest.raises(PushError, match="has weight version 1, the learner 2"):
        pusher.verify(2)


@pytest.mark.engine
def test_a_corrupted_tensor_is_caught_by_the_logprobs(served: Served, other: Path) -> None:
    weights = tensors(other)
    damaged = "model.layers.1.self_attn.o_proj.weight"
    weights[damaged] = weights[damaged].clone()
    weights[damaged][0] *= -1
    WeightPusher(served.url).push(weights.items(), version=2)
    completions = sample(served.url)
    assert {completion.version for completion in completions} == {2}  # the tag alone sees nothing
    assert gap(other, completions) > 1e-4


@pytest.mark.engine
def test_a_failed_push_can_be_repeated(served: Served, other: Path) -> None:
    def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(iter(tensors(other).items()))
        raise RuntimeError("the learner died")

    pusher = WeightPusher(served.url)
    with pytest.raises(RuntimeError, match="the learner died"):
        pusher.push(interrupted(), version=3)
    with pytest.raises(PushError, match="has weight version 0, the learner 3"):
        pusher.verify(3)
    with pytest.raises(PushError, match="nothing to push"):
        pusher.push([], version=3)
    pusher.push(tensors(other).items(), version=3)
    assert gap(other, sample(served.url)) < 1e-5


def test_a_push_to_nowhere_is_one_line() -> None:
    with pytest.raises(PushError) as caught:
        WeightPusher("http://127.0.0.1:9", timeout=5).push([("a", torch.zeros(1))], version=1)
    assert "http://127.0.0.1:9/server_info" in str(caught.value)
    assert "\n" not in str(caught.value)


class FakeServed(WeightPusher):
    """Talks to a server of `ranks` tensor-parallel ranks that agrees to everything."""

    def __init__(self, ranks: int) -> None:
        super().__init__("http://fake")
        self.ranks = ranks
        self.sent: list[list[str]] = []

    def _request(self, path: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        if payload and "serialized_named_tensors" in payload:
            self.sent.append(payload["serialized_named_tensors"])
        return {"success": True, "tp_size": self.ranks, "weight_version": "4"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_of_the_engine_gets_its_own_handles(ranks: int) -> None:
    from sglang.srt.utils import MultiprocessingSerializer

    pusher = FakeServed(ranks)
    weight = torch.arange(6.0)
    pusher.push([("weight", weight)], version=4)
    (handles,) = pusher.sent
    found = [MultiprocessingSerializer.deserialize(handle)["flattened_tensor"] for handle in handles]
    assert len(found) == ranks
    assert all(torch.equal(tensor.view(torch.float32), weight) for tensor in found)


def test_buckets_keep_order_and_size() -> None:
    weights = [(str(i), torch.zeros(size)) for i, size in enumerate([3, 4, 1, 20, 2])]
    cut = list(buckets(weights, limit=32))
    assert [[name for name, _ in bucket] for bucket in cut] == [["0", "1", "2"], ["3"], ["4"]]
    assert list(buckets([], limit=32)) == []


def test_logprob_gap_counts_tokens() -> None:
    ours = [np.array([-1.0, -2.0], np.float32), np.array([-3.0], np.float32)]
    theirs = [np.array([-1.0, -2.5], np.float32), np.array([-3.25], np.float32)]
    found = logprob_gap(ours, theirs)
    assert (found.mean, found.max, found.tokens) == (0.25, 0.5, 3)
    assert logprob_gap([], []).tokens == 0
    with pytest.raises(ValueError, match="not of the same tokens"):
        logprob_gap(ours[1:], theirs[:1])
