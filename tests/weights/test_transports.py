"""What transports are made of: buckets, handles, ranks of a group, ceilings; no server."""

from __future__ import annotations

import contextlib
import hashlib
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from gigpo_mega.config import WeightsConfig
from gigpo_mega.cpu import stubs
from gigpo_mega.shape import ModelShape
from gigpo_mega.weights.push import Pushed, WeightPush
from gigpo_mega.weights.transport import broadcast, ceiling
from gigpo_mega.weights.transport.base import NamedTensor, PushError
from gigpo_mega.weights.transport.broadcast import _Group, invitations
from gigpo_mega.weights.transport.buckets import Bucket, buckets, stream, update_fields
from gigpo_mega.weights.transport.checksums import Checksums
from gigpo_mega.weights.transport.receivers import Payload, Receivers
from gigpo_mega.weights.transport.tensor import TensorTransport


@pytest.fixture(autouse=True, scope="module")
def imported_sglang() -> None:
    """Before processes are forked, which need it."""
    stubs.install()
    import_module("sglang.srt.utils")


def named(*sizes: int) -> Iterator[NamedTensor]:
    return ((str(i), torch.zeros(size)) for i, size in enumerate(sizes))


def test_buckets_keep_order_and_size() -> None:
    cut = [([name for name, _ in bucket], last) for bucket, last in buckets(named(3, 4, 1, 20, 2), limit=32)]
    assert cut == [(["0", "1", "2"], False), (["3"], False), (["4"], True)]
    assert list(buckets([], limit=32)) == []


def test_the_next_bucket_is_gathered_while_one_travels() -> None:
    events: list[str] = []

    def gathered() -> Iterator[NamedTensor]:
        for name, tensor in named(8, 8, 8):
            events.append(f"gather {name}")
            yield name, tensor

    def start(bucket: Bucket, last: bool) -> Callable[[], Any]:
        ((name, _),) = bucket
        events.append(f"start {name}")
        return lambda: events.append(f"arrive {name}")

    stream(gathered(), 32, start)
    assert events == [
        "gather 0", "gather 1", "start 0", "gather 2", "arrive 0", "start 1", "arrive 1", "start 2",
        "arrive 2",
    ]  # fmt: skip
    with pytest.raises(PushError, match="nothing to push"):
        stream([], 32, start)


def test_version_and_flush_come_with_the_last_bucket() -> None:
    assert update_fields(4, last=False) == {"load_format": "flattened_bucket", "flush_cache": False}
    assert update_fields(4, last=True) == {
        "load_format": "flattened_bucket", "flush_cache": True, "weight_version": "4",
    }  # fmt: skip


class FakeReceivers(Receivers):
    """Servers of `ranks` tensor-parallel ranks each, which agree to everything; ranks hold `held`."""

    def __init__(self, *ranks: int, held: Sequence[dict[str, str]] = (), version: str = "4") -> None:
        super().__init__([f"http://fake{number}" for number in range(len(ranks))])
        self.sizes = dict(zip(self.urls, ranks, strict=True))
        self.sent: dict[str, list[str]] = {}
        self.asked: list[tuple[str, Payload | None]] = []
        self.held, self.version, self.device = held or [{}] * max(ranks), version, "cpu"
        self.replicas = 1  # of data or pipeline parallelism

    def _request(self, url: str, path: str, payload: Payload | None) -> dict[str, Any]:
        self.asked.append((path, payload))
        if payload and "serialized_named_tensors" in payload:
            self.sent[url] = payload["serialized_named_tensors"]
        return {
            "success": True,
            "tp_size": self.sizes[url],
            "device": self.device,
            "weight_version": self.version,
            "ranks": [self._rank(rank, self.sizes[url]) for rank in range(self.sizes[url])],
        }

    def _rank(self, rank: int, size: int) -> dict[str, Any]:
        place = {"tp_rank": rank, "tp_size": size, "dp_size": self.replicas, "pp_size": 1}
        return {"checksums": self.held[rank], "parallelism_info": [place]}


def test_every_rank_of_every_engine_gets_its_own_handles() -> None:
    from sglang.srt.utils import MultiprocessingSerializer

    receivers, weight = FakeReceivers(1, 2), torch.arange(6.0)
    TensorTransport(receivers, 1 << 20).send([("weight", weight)], version=4)
    assert [len(receivers.sent[url]) for url in receivers.urls] == [1, 2]
    for handle in [handle for handles in receivers.sent.values() for handle in handles]:
        found = MultiprocessingSerializer.deserialize(handle)["flattened_tensor"]
        assert torch.equal(found.view(torch.float32), weight)


def test_every_rank_of_every_engine_has_its_place_in_the_group() -> None:
    urls = ["http://127.0.0.1:30000", "http://localhost:30001", "http://127.0.0.1:30002"]
    asked = invitations(urls, [2, 4, 1], {"group_name": "weights"})
    assert [found["rank_offset"] for found in asked] == [1, 3, 7]
    assert {found["world_size"] for found in asked} == {8}
    assert {found["group_name"] for found in asked} == {"weights"}
    assert asked[0]["master_address"] == "127.0.0.1"


class FakeEngine:
    """The process of an engine's rank in a group of three: receives broadcasts until the group is gone."""

    def __init__(self, group: _Group, rank: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.received, theirs = fork.Pipe()
        arguments = (group.described["master_port"], group.name, rank, theirs)
        self.process = fork.Process(target=self._receive, args=arguments, daemon=True)
        self.process.start()

    @staticmethod
    def _receive(port: int, name: str, rank: int, received: Any) -> None:
        from sglang.srt.utils import init_custom_process_group

        store = PrefixStore(name, TCPStore("127.0.0.1", port, is_master=False))
        bucket = torch.empty(3)
        with contextlib.suppress(RuntimeError):
            group = init_custom_process_group("gloo", store=store, world_size=3, rank=rank, group_name=name)
            while True:
                dist.broadcast(bucket, 0, group=group)
                received.send(bucket.tolist())
        received.send("left")

    def said(self) -> Any:
        """What it receives next, within 20 seconds."""
        assert self.received.poll(20)
        return self.received.recv()


def test_a_failed_broadcast_lets_go_of_a_server_that_waits_for_a_bucket() -> None:
    """Its error keeps a traceback, and that kept the connections: the server waited for half an hour."""
    group = _Group(3, "gloo")
    engines = [FakeEngine(group, rank) for rank in (1, 2)]
    try:
        group.join()
        group.begin(torch.tensor([1.0, 2.0, 3.0]))
        group.wait()
        assert [engine.said() for engine in engines] == [[1.0, 2.0, 3.0]] * 2
        engines[1].process.kill()
        engines[1].process.join()
        with pytest.raises(PushError, match="a server did not join or left: ") as kept:
            fail(group)
        assert kept.tb is not None
        while engines[0].said() != "left":
            pass
    finally:
        for engine in engines:
            engine.process.kill()


def fail(group: _Group) -> None:
    try:
        for bucket in torch.ones(9, 3):  # the first may go before the connection is known to be lost
            group.begin(bucket)
            group.wait()
    finally:
        group.close()


def test_a_server_that_does_not_join_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "LIMIT", timedelta(seconds=2))
    group = _Group(3, "gloo")
    engine = FakeEngine(group, rank=1)
    try:
        with pytest.raises(PushError, match=r"^weights\.transport broadcast: a server did not join") as kept:
            group.join()
        group.close()
        assert kept.tb is not None
        assert engine.said() == "left"
    finally:
        engine.process.kill()


def test_ceilings_are_rates_in_gib_per_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.25])
    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: next(times))
    assert ceiling._rate(2**29, lambda: None) == 2.0
    monkeypatch.undo()
    assert min(ceiling.copying(), ceiling.sending(), ceiling.writing(tmp_path / "new")) > 0.01
    assert list((tmp_path / "new").iterdir()) == []


def sha(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def numbered(*sizes: int) -> torch.Tensor:
    """All values differ."""
    return torch.arange(math.prod(sizes), dtype=torch.float32).view(sizes)


LAYER = "model.layers.3"
SHAPE = ModelShape(
    family="llama", vocab=65, hidden=4, ffn=8, layers=4, heads=2, kv_heads=1, head_dim=2, rope_theta=1e4,
    norm_epsilon=1e-6, max_positions=64, tied=True, qkv_bias=False,
)  # fmt: skip
Q, K, V = numbered(4, 4), numbered(2, 4) + 1, numbered(2, 4) + 2
GATE, UP, DOWN, OUT = numbered(8, 4) + 3, numbered(8, 4) + 4, numbered(4, 8), numbered(4, 4) + 5
WORDS, NORM = numbered(65, 4), numbered(4)
SENT = {
    f"{LAYER}.self_attn.v_proj.weight": V,
    "model.embed_tokens.weight": WORDS,
    f"{LAYER}.self_attn.q_proj.weight": Q,
    f"{LAYER}.mlp.up_proj.weight": UP,
    f"{LAYER}.mlp.down_proj.weight": DOWN,
    f"{LAYER}.self_attn.k_proj.weight": K,
    f"{LAYER}.self_attn.o_proj.weight": OUT,
    f"{LAYER}.mlp.gate_proj.weight": GATE,
    "model.norm.weight": NORM,
}
HELD = {
    f"{LAYER}.self_attn.qkv_proj.weight": sha(Q, K, V),
    f"{LAYER}.mlp.gate_up_proj.weight": sha(GATE, UP),
    f"{LAYER}.mlp.down_proj.weight": sha(DOWN),
    f"{LAYER}.self_attn.o_proj.weight": sha(OUT),
    "model.embed_tokens.weight": sha(WORDS, torch.zeros(63, 4)),
    "model.norm.weight": sha(NORM),
}
HALVES = [
    {
        f"{LAYER}.self_attn.qkv_proj.weight": sha(Q[2 * rank :][:2], K, V),  # they share the only k and v
        f"{LAYER}.mlp.gate_up_proj.weight": sha(GATE[4 * rank :][:4], UP[4 * rank :][:4]),
        f"{LAYER}.mlp.down_proj.weight": sha(DOWN[:, 4 * rank :][:, :4].clone()),
        f"{LAYER}.self_attn.o_proj.weight": sha(OUT[:, 2 * rank :][:, :2].clone()),
        "model.embed_tokens.weight": sha(WORDS[64:], torch.zeros(63, 4)) if rank else sha(WORDS[:64]),
        "model.norm.weight": sha(NORM),
    }
    for rank in range(2)
]


def passed(*sizes: int) -> Checksums:
    made = Checksums(SHAPE, sizes)
    assert list(made.passing(SENT.items())) == list(SENT.items())
    return made


def test_checksums_are_those_of_the_engines_tensors() -> None:
    made = passed(1)
    assert made.nbytes == sum(tensor.nbytes for tensor in SENT.values())
    made.compare(FakeReceivers(1, 1, held=[HELD]))
    for name in HELD:
        with pytest.raises(
            PushError, match=rf"^the engine at http://fake0 holds other values of {name} than"
        ):
            made.compare(FakeReceivers(1, held=[HELD | {name: "0" * 16}]))
    without = {name: value for name, value in HELD.items() if name != "model.norm.weight"}
    with pytest.raises(PushError, match=r"other values of model\.norm\.weight than"):
        made.compare(FakeReceivers(1, held=[without]))


def test_each_rank_of_an_engine_holds_its_part() -> None:
    made = passed(2, 1, 2)
    made.compare(FakeReceivers(2, 2, held=HALVES))
    for name in HELD:
        wrong = [HALVES[0], HALVES[1] | {name: "0" * 16}]
        with pytest.raises(PushError, match=f"^rank 1 of the engine at http://fake0 holds other .* {name} "):
            made.compare(FakeReceivers(2, held=wrong))
    with pytest.raises(PushError, match=r"^rank 0 of the engine"):
        made.compare(FakeReceivers(2, held=HALVES[::-1]))


def test_a_vocabulary_of_whole_multiples_that_ranks_cannot_share_is_padded_further() -> None:
    """128 rows are not three equal parts; 192 are."""
    made = Checksums(SHAPE, [3])
    list(made.passing([("model.embed_tokens.weight", WORDS)]))
    parts = [sha(WORDS[:64]), sha(WORDS[64:], torch.zeros(63, 4)), sha(torch.zeros(64, 4))]
    made.compare(FakeReceivers(3, held=[{"model.embed_tokens.weight": part} for part in parts]))


def test_checksums_that_say_nothing_are_not_compared() -> None:
    passed().compare(FakeReceivers(1))  # weights.checksums is false
    elsewhere = FakeReceivers(1)
    elsewhere.device = "cuda"
    passed(1).compare(elsewhere)
    cut = FakeReceivers(1)
    cut.replicas = 2
    passed(1).compare(cut)
    with pytest.raises(PushError, match="http://fake0 holds other values"):
        passed(1).compare(FakeReceivers(1))


def pushed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, receivers: FakeReceivers, busy: bool = False
) -> Pushed:
    monkeypatch.setattr("gigpo_mega.weights.push.Receivers", lambda urls, timeout: receivers)
    return WeightPush(WeightsConfig(), SHAPE, receivers.urls, folder, busy=busy).push(SENT.items(), version=4)


def test_a_push_is_over_when_version_and_checksums_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = pushed(monkeypatch, tmp_path, FakeReceivers(1, held=[HELD]))
    assert done.nbytes == passed(1).nbytes
    with pytest.raises(PushError, match="has weight version 3, the learner 4"):
        pushed(monkeypatch, tmp_path, FakeReceivers(1, held=[HELD], version="3"))
    with pytest.raises(PushError, match=r"embed_tokens\.weight and 5 more than the learner sent"):
        pushed(monkeypatch, tmp_path, FakeReceivers(1))


@pytest.mark.parametrize("version", ["4", "3"])
def test_busy_engines_stand_still_from_before_a_push_until_one_succeeds(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receivers = FakeReceivers(1, held=[HELD], version=version)
    with nullcontext() if version == "4" else pytest.raises(PushError, match="has weight version 3"):
        pushed(monkeypatch, tmp_path, receivers, busy=True)
    changes = [(path, payload) for path, payload in receivers.asked if payload is not None]
    assert changes[0] == ("/pause_generation", {"mode": "retract"})
    assert (changes[-1] == ("/continue_generation", {})) == (version == "4")
    assert sum(path == "/continue_generation" for path, _ in changes) == (version == "4")
    idle = FakeReceivers(1, held=[HELD])
    pushed(monkeypatch, tmp_path, idle)
    assert not any("_generation" in path for path, _ in idle.asked)


def test_what_a_push_took_is_told_in_gib() -> None:
    assert Pushed(2**29, 0.25, 8.0).metrics == {
        "weights/push_seconds": 0.25,
        "weights/push_gib": 0.5,
        "weights/push_gib_per_s": 2.0,
        "weights/push_ceiling_gib_per_s": 8.0,
    }


def test_all_members_of_a_host_leave_a_group_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL may wait in a server's leave until this process leaves, too."""
    done: list[str] = []

    class FakeGroup:
        name, described = "weights", dict[str, Any]()

        def __init__(self, size: int, backend: str) -> None: ...

        def join(self) -> None: ...

        def abort(self) -> None:
            done.append("aborted")

        def close(self) -> None:
            done.append("closed")

    class FakePosted:
        def __init__(self, path: str) -> None:
            self.path = path

        def answers(self) -> None:
            done.append(f"{self.path} answered")

    class FakeReceivers:
        urls = ("http://127.0.0.1:1",)

        def ranks(self) -> list[int]:
            return [1]

        def start(self, path: str, payload: Any) -> FakePosted:
            return FakePosted(path)

    monkeypatch.setattr(broadcast, "_Group", FakeGroup)
    receivers: Any = FakeReceivers()
    with broadcast.BroadcastTransport(receivers, 1)._joined():
        done.clear()
    assert done[:2] == ["closed", "/destroy_weights_update_group answered"]

    done.clear()
    with contextlib.suppress(PushError), broadcast.BroadcastTransport(receivers, 1)._joined():
        raise PushError("a server is gone")
    assert done[-2:] == ["aborted", "closed"]  # NCCL would wait for a broadcast without a receiver
