"""Every transport to real servers: exact by checksum, tagged, prefix cache flushed, losses caught."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gigpo_mega.config import EngineConfig, WeightsConfig
from gigpo_mega.rollout.engines.base import Completion, Sampling
from gigpo_mega.rollout.engines.server import SGLangServer, wait
from gigpo_mega.rollout.engines.sglang import SGLangEngine
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.push import WeightPush
from gigpo_mega.weights.transport.base import NamedTensor, PushError
from gigpo_mega.weights.transport.receivers import Receivers
from tests.conftest import Served
from tests.programs import results
from tests.tiny import write_policy

pytestmark = pytest.mark.engine
TRANSPORTS = ("tensor", "broadcast", "disk")
PROMPTS = [[9, *range(20, 60), i] for i in range(3, 11)]
SHAPE = ModelShape(
    family="qwen2", vocab=203, hidden=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8, rope_theta=1e4,
    norm_epsilon=1e-6, max_positions=256, tied=True, qkv_bias=True,
)  # fmt: skip
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random policy of the same shape."""
    return write_policy(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def weights(other: Path) -> Weights:
    return load_file(other / "model.safetensors")


@pytest.fixture(scope="module")
def second(sglang_server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SGLangServer]:
    """A server of two ranks beside the session's, with the same policy."""
    log = tmp_path_factory.mktemp("second") / "sglang.log"
    with SGLangServer(sglang_server.model, EngineConfig(max_total_tokens=8192, tensor=2), log) as server:
        yield server


@pytest.fixture
def push(request: pytest.FixtureRequest, served: Served, tmp_path: Path) -> WeightPush:
    """The way to one server, in buckets of 1 KiB: some thirty of them."""
    made = WeightPush(WeightsConfig(transport=request.param), SHAPE, [served.url], tmp_path / "weights")
    made._transport._bucket_bytes = 1 << 10  # type: ignore[attr-defined]
    return made


every_transport = pytest.mark.parametrize("push", TRANSPORTS, indirect=True)


def sample(url: str, tokens: int = 5) -> list[Completion]:
    async def run() -> list[Completion]:
        async with SGLangEngine(url) as engine:
            sampling = Sampling(max_new_tokens=tokens)
            return await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in PROMPTS))

    return asyncio.run(run())


def differences(model: Path, completions: list[Completion]) -> list[np.ndarray]:
    """The engine's log-probs less those of `model`, of each completion."""
    from transformers import Qwen2ForCausalLM

    policy: Any = Qwen2ForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rows = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion.response_ids.tolist()]])
        with torch.no_grad():
            logprobs = policy(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        rows.append(completion.logprobs - logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy())
    return rows


def gap(model: Path, completions: list[Completion]) -> float:
    """The largest difference of the engine's log-probs from those of `model`."""
    found = np.concatenate(differences(model, completions))
    assert len(found) == 5 * len(PROMPTS)
    return float(np.abs(found).max())


def held(url: str) -> list[dict[str, str]]:
    """SGLang's checksum of every tensor of each rank of the server at `url`."""
    request = urllib.request.Request(f"{url}/weights_checker", data=b"{}", method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [rank["checksums"] for rank in json.loads(answer.read())["ranks"]]


def checksums(weights: Weights, ranks: int = 1) -> list[dict[str, str]]:
    """The same, from the Hugging Face tensors of a Qwen2 of two layers, 203 tokens and two key heads."""
    words = torch.cat([weights["model.embed_tokens.weight"], torch.zeros(256 - 203, 32)])
    whole = {name: tensor for name, tensor in weights.items() if name.endswith("norm.weight")}

    def rank(number: int) -> dict[str, torch.Tensor]:
        def rows(*names: str) -> torch.Tensor:
            return torch.cat([weights[name].tensor_split(ranks)[number] for name in names])

        found = whole | {"model.embed_tokens.weight": words.tensor_split(ranks)[number]}
        for layer in (f"model.layers.{i}" for i in range(2)):
            for name in (f"{layer}.self_attn.o_proj.weight", f"{layer}.mlp.down_proj.weight"):
                found[name] = weights[name].tensor_split(ranks, dim=1)[number]
            gate_up = (f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up"))
            found[f"{layer}.mlp.gate_up_proj.weight"] = rows(*gate_up)
            for kind in ("weight", "bias"):
                qkv = (f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
                found[f"{layer}.self_attn.qkv_proj.{kind}"] = rows(*qkv)
        return found

    return [{name: sha(tensor) for name, tensor in rank(number).items()} for number in range(ranks)]


def sha(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


@every_transport
def test_a_push_changes_the_weights_exactly(
    push: WeightPush, served: Served, other: Path, weights: Weights
) -> None:
    before = sample(served.url)  # fills the prefix cache with the old weights' keys and values
    assert {v for c in before for v in c.versions.tolist()} == {0}
    assert gap(served.model, before) < 1e-5
    assert gap(other, before) > 1e-2
    pushed = push.push(iter(weights.items()), version=7)
    assert pushed.nbytes == sum(tensor.nbytes for tensor in weights.values())
    assert held(served.url) == checksums(weights)
    after = sample(served.url)
    assert {v for c in after for v in c.versions.tolist()} == {7}
    assert gap(other, after) < 1e-5  # also says that no stale prefix was used
    assert all(completion.cached_tokens < len(PROMPTS[0]) for completion in after)


@every_transport
def test_a_push_that_a_killed_learner_has_left_open_is_closed(
    push: WeightPush, served: Served, weights: Weights
) -> None:
    Receivers([served.url]).post("/begin_weight_update")
    push.push(weights.items(), version=3)
    assert held(served.url) == checksums(weights)


@pytest.mark.parametrize(("transport", "ranks"), [*((name, 1) for name in TRANSPORTS), ("tensor", 2)])
def test_responses_under_way_go_on_with_the_new_weights_as_if_they_had_begun_them(
    transport: Any,
    ranks: int,
    served: Served,
    second: SGLangServer,
    other: Path,
    weights: Weights,
    tmp_path: Path,
) -> None:
    url = served.url if ranks == 1 else second.url
    push = WeightPush(WeightsConfig(transport=transport), SHAPE, [url], tmp_path / "weights", busy=True)
    first = load_file(served.model / "model.safetensors")
    push.push(first.items(), version=0)
    delay, mixed = 0.2, 0
    with ThreadPoolExecutor(1) as thread:
        for version in range(1, 21):  # until one comes in the middle
            sampled = thread.submit(sample, url, 180)
            time.sleep(delay)
            push.push((weights if version % 2 else first).items(), version)
            completions = sampled.result()
            even, odd = (differences(model, completions) for model in (served.model, other))
            for completion, of_even, of_odd in zip(completions, even, odd, strict=True):
                assert set(completion.versions) <= {version - 1, version}
                assert (np.diff(completion.versions) >= 0).all()
                assert np.abs(np.where(completion.versions % 2, of_odd, of_even)).max() < 1e-5
                mixed += bool(np.ptp(completion.versions))
            if mixed:
                break
            delay *= 1.5 if completions[0].versions[-1] == version else 0.5  # it came too early or too late
    assert mixed


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_servers_get_the_same_weights_and_version(
    transport: Any, served: Served, second: SGLangServer, weights: Weights, tmp_path: Path
) -> None:
    push = WeightPush(WeightsConfig(transport=transport), SHAPE, [served.url, second.url], tmp_path)
    original = load_file(served.model / "model.safetensors")
    for version, wanted in enumerate((weights, original), start=3):  # whatever the transport before left
        push.push(wanted.items(), version)
        assert held(served.url) == checksums(wanted)
        assert held(second.url) == checksums(wanted, ranks=2)
        push.verify(version)
    assert gap(served.model, sample(second.url)) < 1e-5


@every_transport
def test_a_push_that_one_server_lost_is_caught_by_the_version(
    push: WeightPush, second: SGLangServer, weights: Weights
) -> None:
    push.push(weights.items(), version=11)
    push._receivers.urls.append(second.url)  # it was not there yet
    with pytest.raises(
        PushError, match=rf"^the engine at {second.url} has weight version \d+, the learner 11"
    ):
        push.verify(11)


def flipped(weights: Iterable[NamedTensor]) -> Iterator[NamedTensor]:
    """One bit of one tensor is another."""
    for name, tensor in weights:
        if name == "model.layers.1.mlp.up_proj.weight":
            tensor = tensor.clone()
            tensor.view(torch.uint8)[3, 5] ^= 1
        yield name, tensor


def lossy(weights: Iterable[NamedTensor]) -> Iterator[NamedTensor]:
    """The attention of a layer never arrives."""
    return ((name, tensor) for name, tensor in weights if "layers.0.self_attn" not in name)


@every_transport
@pytest.mark.parametrize(("fault", "named"), [
    (flipped, "model.layers.1.mlp.gate_up_proj.weight than"),
    (lossy, "model.layers.0.self_attn.o_proj.weight and 2 more than"),
])  # fmt: skip
def test_weights_that_change_or_vanish_on_the_way_are_caught_and_named(
    push: WeightPush,
    fault: Callable[[Iterable[NamedTensor]], Iterator[NamedTensor]],
    named: str,
    served: Served,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = push._transport.send
    monkeypatch.setattr(push._transport, "send", lambda sent, version: send(fault(sent), version))
    with pytest.raises(
        PushError, match=f"^the engine at {served.url} holds other values of {named}"
    ) as caught:
        push.push(sorted(weights.items()), version=2)
    assert "\n" not in str(caught.value)
    push.verify(2)  # the tag alone sees nothing
    monkeypatch.undo()
    push.push(weights.items(), version=2)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_rank_that_holds_other_weights_is_named(
    transport: Any, second: SGLangServer, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = WeightPush(WeightsConfig(transport=transport), SHAPE, [second.url], tmp_path)
    send = push._transport.send
    monkeypatch.setattr(push._transport, "send", lambda sent, version: send(flipped(sent), version))
    named = r"holds other values of model\.layers\.1\.mlp\.gate_up_proj\.weight than the learner"
    with pytest.raises(PushError, match=f"^rank 0 of the engine at {second.url} {named}"):
        push.push(weights.items(), version=2)
    monkeypatch.undo()
    push.push(weights.items(), version=2)
    assert held(second.url) == checksums(weights, ranks=2)


def test_without_checksums_a_corrupted_tensor_is_caught_by_the_logprobs(
    served: Served, other: Path, weights: Weights, tmp_path: Path
) -> None:
    damaged = "model.layers.1.self_attn.o_proj.weight"
    wrong = weights | {damaged: weights[damaged].clone()}
    wrong[damaged][0] *= -1
    WeightPush(WeightsConfig(checksums=False), SHAPE, [served.url], tmp_path).push(wrong.items(), version=2)
    assert gap(other, sample(served.url)) > 1e-4


def test_a_file_that_changed_before_it_was_loaded_is_named(
    served: Served, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = WeightPush(WeightsConfig(transport="disk"), SHAPE, [served.url], tmp_path)
    post = push._receivers.post

    def damage(path: str, payload: Any = None) -> Any:
        if path == "/update_weights_from_disk":
            with (Path(payload["model_path"]) / "model.safetensors").open("r+b") as file:
                file.seek(-5, 2)
                file.write(b"\x00")
        return post(path, payload)

    monkeypatch.setattr(push._receivers, "post", damage)
    said = (
        r"holds other values of .*; .*/version_000004: model.safetensors has another SHA-256 than was written"
    )
    with pytest.raises(PushError, match=said):
        push.push(weights.items(), version=4)


def test_the_disk_keeps_the_newest_version_alone_with_its_checksums(
    served: Served, weights: Weights, tmp_path: Path
) -> None:
    push = WeightPush(WeightsConfig(transport="disk"), SHAPE, [served.url], tmp_path)
    for version in (1, 2, 2):
        push.push(weights.items(), version)
    (kept,) = tmp_path.iterdir()
    assert kept.name == "version_000002"
    digest = hashlib.sha256((kept / "model.safetensors").read_bytes()).hexdigest()
    assert (kept / "SHA256SUMS").read_text() == f"{digest}  model.safetensors\n"


@every_transport
def test_a_failed_push_can_be_repeated(push: WeightPush, served: Served, weights: Weights) -> None:
    def interrupted() -> Iterator[NamedTensor]:
        yield from list(weights.items())[:9]
        raise RuntimeError("the learner died")

    with pytest.raises(RuntimeError, match="the learner died"):
        push.push(interrupted(), version=3)
    with pytest.raises(PushError, match="has weight version 0, the learner 3"):
        push.verify(3)
    with pytest.raises(PushError, match="nothing to push"):
        push.push([], version=3)
    push.push(weights.items(), version=3)
    assert held(served.url) == checksums(weights)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_push_to_nowhere_is_one_line(transport: Any, tmp_path: Path) -> None:
    push = WeightPush(WeightsConfig(transport=transport), SHAPE, ["http://127.0.0.1:9"], tmp_path, timeout=5)
    with pytest.raises(PushError, match=r"http://127\.0\.0\.1:9/") as caught:
        push.push([("a", torch.zeros(1))], version=1)
    assert "\n" not in str(caught.value)


def test_a_server_that_dies_in_a_broadcast_is_named_and_when_it_is_back_it_gets_the_next(
    served: Served, second: SGLangServer, weights: Weights, tmp_path: Path
) -> None:
    push = WeightPush(WeightsConfig(transport="broadcast"), SHAPE, [served.url, second.url], tmp_path)
    push._transport._bucket_bytes = 1 << 10  # type: ignore[attr-defined]

    def interrupted() -> Iterator[NamedTensor]:
        yield from list(weights.items())[:9]
        second.close()
        yield from list(weights.items())[9:]

    push.push(weights.items(), version=5)
    begin = time.perf_counter()
    with pytest.raises(PushError, match=f"^{second.url}/update_weights_from_distributed: ") as caught:
        push.push(interrupted(), version=6)
    assert "\n" not in str(caught.value)
    push._receivers.urls.pop()
    push.push(weights.items(), version=6)  # at once: the other does not wait for the rest of the bucket
    assert time.perf_counter() - begin < 30
    assert held(served.url) == checksums(weights)
    second.launch()
    wait([second])
    push._receivers.urls.append(second.url)
    with pytest.raises(PushError, match=f"^the engine at {second.url} has weight version 0, the learner 6"):
        push.verify(6)
    push.push(weights.items(), version=7)
    assert held(served.url) == checksums(weights)
    assert held(second.url) == checksums(weights, ranks=2)


@pytest.mark.distributed
def test_four_ranks_push_what_they_hold_to_servers_of_one_and_of_two(
    served: Served, second: SGLangServer, other: Path, tmp_path: Path
) -> None:
    """Tensor 2 x pipeline 2 under torchrun, each version with other weights than the one before."""
    urls = [served.url, second.url]
    rows = results(4, "tests/weights/push_ranks.py", str(other), str(tmp_path), *urls)
    assert [row["transport"] for row in rows] == list(TRANSPORTS)
    assert all(row["metrics"]["weights/push_gib_per_s"] > 0 for row in rows)
    for row in rows:
        moved = load_file(tmp_path / row["transport"] / "model.safetensors")
        assert row["held"] == [checksums(moved), checksums(moved, ranks=2)]
