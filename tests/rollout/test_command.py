"""The whole command of a server per stack and parameter type, and what SGLang's own parser makes of it."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from gigpo_mega.config import EngineConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.command import Launch, holds_weights
from gigpo_mega.rollout.engines.server import SGLangServer
from gigpo_mega.rollout.engines.servers import Servers
from gigpo_mega.stack import Stack

Name = Literal["cpu", "cuda"]
URL, NAME = "http://127.0.0.1:30001", "gigpo-mega-1"
COMMON = (
    "--model-path {model} --host 127.0.0.1 --port 30001 --skip-tokenizer-init --skip-server-warmup "
    "--log-level warning --served-model-name gigpo-mega-1 --mem-fraction-static 0.3"
)
# (stack, dtype, does it share its GPU) -> module, what differs in the middle, the weights
COMMANDS: dict[tuple[Name, str, bool], str] = {
    ("cpu", "float32", False): (
        f"-m gigpo_mega.cpu.sglang_server {COMMON} --max-total-tokens 65536 --max-running-requests 48 "
        "--sleep-on-idle --dtype float32 --random-seed 7 --weight-version none --load-format dummy"
    ),
    ("cpu", "bfloat16", False): (
        f"-m gigpo_mega.cpu.sglang_server {COMMON} --max-total-tokens 65536 --max-running-requests 48 "
        "--sleep-on-idle --dtype bfloat16 --random-seed 7 --weight-version none --load-format dummy"
    ),
    ("cuda", "float32", True): (
        f"-m sglang.launch_server {COMMON} --max-running-requests 48 --sleep-on-idle --enable-memory-saver "
        "--attention-backend triton --sampling-backend pytorch --dtype float32 --random-seed 7 "
        "--weight-version none --load-format dummy"
    ),
    ("cuda", "float32", False): (
        f"-m sglang.launch_server {COMMON} --max-running-requests 48 --sleep-on-idle "
        "--attention-backend triton --sampling-backend pytorch --dtype float32 --random-seed 7 "
        "--weight-version none --load-format dummy"
    ),
    ("cuda", "bfloat16", True): (
        f"-m sglang.launch_server {COMMON} --max-running-requests 48 --sleep-on-idle --enable-memory-saver "
        "--enable-fp32-lm-head --dtype bfloat16 --random-seed 7 --weight-version none --load-format dummy"
    ),
    ("cuda", "bfloat16", False): (
        f"-m sglang.launch_server {COMMON} --max-running-requests 48 --sleep-on-idle "
        "--enable-fp32-lm-head --dtype bfloat16 --random-seed 7 --weight-version none --load-format dummy"
    ),
}


@pytest.fixture(autouse=True)
def _model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')


def command(model: Path, name: Name, dtype: str, shares: bool, **engine: Any) -> list[str]:
    launch = Launch(Stack(name, ""), dtype, seed=7, requests=48, releases_memory=shares)
    return launch.command(model, EngineConfig(**engine), URL, NAME)


@pytest.mark.parametrize(("name", "dtype", "shares"), COMMANDS)
def test_a_server_is_launched_by_exactly_this_command(
    name: Name, dtype: str, shares: bool, tmp_path: Path
) -> None:
    expected = COMMANDS[name, dtype, shares].format(model=tmp_path).split()
    assert command(tmp_path, name, dtype, shares) == [sys.executable, "-P", *expected]


def test_weights_of_the_model_are_version_0(tmp_path: Path) -> None:
    assert not holds_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert holds_weights(tmp_path)
    assert command(tmp_path, "cuda", "bfloat16", False)[-2:] == ["--weight-version", "0"]


def test_a_size_of_the_cache_holds_on_both_stacks_and_flags_of_the_user_come_last(tmp_path: Path) -> None:
    flags = {"max_total_tokens": 4096, "arguments": ["--attention-backend", "fa3"]}
    for name in ("cpu", "cuda"):
        words = command(tmp_path, name, "float32", False, **flags)
        assert words[words.index("--max-total-tokens") + 1] == "4096"
        assert words[-2:] == ["--attention-backend", "fa3"]


@pytest.mark.parametrize(
    ("name", "dtype", "exact"),
    [("cuda", "float32", True), ("cuda", "bfloat16", False), ("cpu", "float32", False)],
)
def test_float32_with_cuda_takes_layers_and_products_that_have_it(
    name: Name, dtype: str, exact: bool
) -> None:
    environment = Launch(Stack(name, ""), dtype).environment(EngineConfig(threads=3))
    assert environment["OMP_NUM_THREADS"] == "3"
    assert (environment.get("TRITON_F32_DEFAULT") == "tf32x3") is exact
    assert (environment.get("SGLANG_FORCE_FUSED_OP_BACKEND") == "torch") is exact


def test_a_server_with_cuda_finds_the_tools_and_libraries_of_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ninja` lies beside the interpreter; the preloaded memory saver looks for libcudart as any program."""
    runtime = tmp_path / "nvidia" / "cu13" / "lib"
    runtime.mkdir(parents=True)
    (runtime / "libcudart.so.13").touch()
    (runtime.parent / "cudnn").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/libraries")
    found = Launch(Stack("cuda", ""), "bfloat16", releases_memory=True).environment(EngineConfig())
    assert found["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    first, *_, last = found["LD_LIBRARY_PATH"].split(":")
    assert (first, last) == (str(runtime), "/libraries")
    monkeypatch.delenv("LD_LIBRARY_PATH")
    for launch in (Launch(Stack("cuda", ""), "bfloat16"), Launch(Stack("cpu", ""), releases_memory=True)):
        assert "LD_LIBRARY_PATH" not in launch.environment(EngineConfig())
    assert Launch(Stack("cpu", "")).environment(EngineConfig())["PATH"] == "/usr/bin"


def test_the_servers_of_all_nodes_sample_from_streams_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The episodes of a group are spread over them: with one seed they would begin as copies."""
    seeds: list[str] = []
    for node in range(4):
        monkeypatch.setenv("GROUP_RANK", str(node))
        launch = Launch(Stack("cuda", "", 8), seed=7)
        for server in Servers(tmp_path, EngineConfig(), tmp_path, launch)._servers:
            assert isinstance(server, SGLangServer)
            words = server._command()
            seeds.append(words[words.index("--random-seed") + 1])
            server.close()
    assert seeds[0] == "7"  # a run with one server draws as it always has
    assert len(set(seeds)) == len(seeds) == 32
    assert all(0 <= int(seed) < 2**31 for seed in seeds)
    near = {(seed + 1_000_003 * place) % 2**31 for seed in range(20) for place in (0, 1, 2, 1024)}
    assert len(near) == 80  # runs of neighboring seeds share no stream


def test_triton_reads_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32x3")
    assert knobs.language.fp32_default == "tf32x3"


@pytest.mark.engine
def test_sglang_reads_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from gigpo_mega.cpu import stubs

    stubs.install()
    from sglang.kernels import fused_op
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    monkeypatch.setenv("SGLANG_FORCE_FUSED_OP_BACKEND", "torch")
    monkeypatch.setattr(fused_op, "_forced_backend", fused_op._UNRESOLVED)
    forced = fused_op.get_fused_op_backend()
    assert forced is not None
    assert fused_op.BACKEND_METHODS[forced] == "forward_native"
    assert all(issubclass(layer, fused_op.BaseFusedOp) for layer in (RMSNorm, RotaryEmbedding))


def test_start_up_may_take_longer_with_cuda() -> None:
    assert Launch(Stack("cpu", "")).startup_timeout == 300
    assert Launch(Stack("cuda", "")).startup_timeout == 1200


def parsed(words: list[str]) -> Any:
    """What SGLang's own parser makes of a command."""
    from gigpo_mega.cpu import stubs

    stubs.install()
    from sglang.srt.server_args import ServerArgs

    from gigpo_mega.cpu.sglang_server import ARGUMENTS

    parser = argparse.ArgumentParser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    ours = list(ARGUMENTS) if words[3] == "gigpo_mega.cpu.sglang_server" else []
    return ServerArgs.from_cli_args(parser.parse_args([*ours, *words[4:]]))


@pytest.mark.engine
@pytest.mark.parametrize(("name", "dtype", "shares"), COMMANDS)
def test_the_parser_of_sglang_takes_every_flag(name: Name, dtype: str, shares: bool, tmp_path: Path) -> None:
    read = parsed(command(tmp_path, name, dtype, shares))
    assert (read.dtype, read.max_running_requests, read.sleep_on_idle) == (dtype, 48, True)
    assert read.enable_memory_saver is shares
    assert read.enable_fp32_lm_head is ((name, dtype) == ("cuda", "bfloat16"))
    backends = {
        ("cpu", "float32"): ("torch_native", "pytorch"),
        ("cpu", "bfloat16"): ("torch_native", "pytorch"),
        ("cuda", "float32"): ("triton", "pytorch"),
        ("cuda", "bfloat16"): (None, None),
    }
    assert (read.attention_backend, read.sampling_backend) == backends[name, dtype]


@pytest.mark.engine
@pytest.mark.parametrize(("gib", "captured"), [(15, 8), (79, 48)])
def test_decode_graphs_are_captured_up_to_the_requests_in_flight(
    gib: int, captured: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No flag says so: SGLang lowers its limit, 8 or 256 on these GPUs, to that of running requests."""
    read = parsed([*command(tmp_path, "cuda", "bfloat16", True), "--device", "cuda"])
    from sglang.srt.arg_groups import cuda_graph_hook, memory_hook
    from sglang.srt.arg_groups.overrides import resolving_view

    monkeypatch.setattr(memory_hook, "get_device_memory_capacity", lambda _: gib * 1024)
    monkeypatch.setattr(memory_hook, "use_mla_backend", lambda _: False)  # it would read the model
    cuda_graph_hook.parse_cuda_graph_config(read)
    memory_hook.handle_gpu_memory_settings(read)
    graphs = resolving_view(read).cuda_graph_config.decode
    assert (graphs.backend, graphs.max_bs, max(graphs.bs)) == ("full", captured, captured)


@pytest.mark.parametrize(
    ("number", "tensor", "flags"),
    [(0, 1, {}), (3, 1, {"--base-gpu-id": "3"}), (0, 2, {"--tp-size": "2"}),
     (3, 2, {"--tp-size": "2", "--base-gpu-id": "6"})],
)
def test_each_server_of_a_node_has_its_own_gpus(
    number: int, tensor: int, flags: dict[str, str], tmp_path: Path
) -> None:
    words = Launch(Stack("cuda", "", 8)).command(tmp_path, EngineConfig(tensor=tensor), URL, NAME, number)
    sized = {flag: word for flag, word in pairwise(words) if flag in ("--tp-size", "--base-gpu-id")}
    assert sized == flags


def test_the_ranks_of_a_server_without_gpus_share_the_cpus(tmp_path: Path) -> None:
    launch, config = Launch(Stack("cpu", "")), EngineConfig(tensor=2, replicas=3)
    words = launch.command(tmp_path, config, URL, NAME, number=1)
    assert ("--tp-size", "2") in pairwise(words)
    assert "--base-gpu-id" not in words
    ours = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    assert launch.environment(config)["SGLANG_CPU_OMP_THREADS_BIND"] == f"{ours}|{ours}"
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in launch.environment(EngineConfig())


@pytest.mark.parametrize(
    ("stack", "engine", "count"),
    [
        (Stack("cpu", ""), {}, 1),
        (Stack("cpu", ""), {"replicas": 3}, 3),
        (Stack("cuda", "", 8), {}, 8),
        (Stack("cuda", "", 8), {"tensor": 3}, 2),
        (Stack("cuda", "", 8), {"tensor": 2, "replicas": 3}, 3),
    ],
)
def test_a_node_has_as_many_servers_as_its_gpus_hold(
    stack: Stack, engine: dict[str, Any], count: int
) -> None:
    assert Launch(stack).replicas(EngineConfig(**engine)) == count


@pytest.mark.parametrize(
    ("stack", "engine", "message"),
    [
        (
            Stack("cuda", "", 4),
            {"tensor": 8},
            r"replicas 1 x engine\.tensor 8 GPUs exceed the 4",
        ),
        (
            Stack("cuda", "", 4),
            {"replicas": 3, "tensor": 2},
            r"replicas 3 x engine\.tensor 2 GPUs exceed",
        ),
    ],
)
def test_more_servers_than_gpus_are_refused(stack: Stack, engine: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Launch(stack).replicas(EngineConfig(**engine))
