"""The command that launches an SGLang server: a function of the stack, the parameter type and the limits."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from gigpo_mega.config import EngineConfig
from gigpo_mega.hf_config import holds_weights, implied_fields
from gigpo_mega.launch import child_environment
from gigpo_mega.stack import Stack

CPU_KV_TOKENS = 65536  # SGLang would fill 30% of the memory; this holds 128 agents of 500 tokens
_SEEDS = 2**31  # that SGLang takes
_STRIDE = 1_000_003  # between the seeds of two servers: odd, so all are different, and none is another run's


@dataclass(frozen=True, slots=True)
class Launch:
    """What decides how a server is launched, besides `EngineConfig`."""

    stack: Stack
    dtype: str = "float32"
    seed: int = 0
    requests: int | None = None  # in flight at most; SGLang captures decode graphs up to this, too
    releases_memory: bool = False  # of its KV cache, on request

    @property
    def startup_timeout(self) -> float:
        """Seconds until the server should be healthy if `engine.startup_timeout` is null."""
        return 1200.0 if self.stack.cuda else 300.0

    def of_server(self, place: int) -> Self:
        """The launch of the server at `place` among all of a run, which samples from a stream of its own.

        With one seed the episodes of a group, which are spread over the servers, would be copies of each
        other for as long as the servers' batches stay alike.
        """
        return replace(self, seed=(self.seed + _STRIDE * place) % _SEEDS)

    def environment(self, config: EngineConfig) -> dict[str, str]:
        """The environment of the server.

        With CUDA, SGLang compiles kernels with the `ninja` beside our interpreter, which need not be on PATH.
        The library with which it releases memory is preloaded: the loader looks for the CUDA runtime that it
        needs before torch could say where that is.

        In float32 with CUDA: sgl_kernel's RMSNorm has 16-bit types only, so SGLang takes its layers in plain
        torch; and attention's products in Triton would round to TF32. Three TF32 products each are about as
        exact as float32, and unlike "ieee" they do not spill most registers (compiled for sm_90).
        """
        environment = child_environment(OMP_NUM_THREADS=str(config.threads), HF_HUB_OFFLINE="1")
        if self.stack.cuda and self.dtype == "float32":
            environment |= {"SGLANG_FORCE_FUSED_OP_BACKEND": "torch", "TRITON_F32_DEFAULT": "tf32x3"}
        if self.stack.cuda:
            environment["PATH"] = _joined(environment, "PATH", [str(Path(sys.executable).parent)])
        if self.stack.cuda and self.releases_memory and (runtimes := cuda_runtimes()):
            environment["LD_LIBRARY_PATH"] = _joined(environment, "LD_LIBRARY_PATH", runtimes)
        if not self.stack.cuda and config.tensor > 1:  # SGLang wants a NUMA node for each rank, or CPUs
            ours = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            environment["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join([ours] * config.tensor)
        return environment

    def replicas(self, config: EngineConfig) -> int:
        """Servers of a node, in all if they are separate; raises UserError if its GPUs do not hold them."""
        if config.placement == "separate" or not self.stack.cuda:
            return config.replicas or 1
        return config.servers(self.stack.gpus)

    def command(self, model: Path, config: EngineConfig, url: str, name: str, number: int = 0) -> list[str]:
        """The command of a node's server `number` for `model` that listens at `url` and reports `name`.

        `engine.arguments` come last, as the last of equal flags counts.
        """
        host, port = url.removeprefix("http://").split(":")
        weights = ["0"] if holds_weights(model) else ["none", "--load-format", "dummy"]
        tokens, backends = config.max_total_tokens, list[str]()
        ranks = ["--tp-size", str(config.tensor)] if config.tensor > 1 else []
        if not self.stack.cuda:
            module, tokens = "gigpo_mega.cpu.sglang_server", tokens or CPU_KV_TOKENS
        else:
            module = "sglang.launch_server"
            if number:
                ranks += ["--base-gpu-id", str(number * config.tensor)]
            if self.dtype == "bfloat16":  # logits of 16 and more would be rounded to multiples of 1/8
                backends = ["--enable-fp32-lm-head"]
            if self.dtype == "float32":  # SGLang's choice on Hopper, FlashAttention 3, has no float32
                backends = ["--attention-backend", "triton", "--sampling-backend", "pytorch"]
        implied = implied_fields(model / "config.json")
        override = ["--json-model-override-args", json.dumps(implied)] if implied else []
        limits = {"--max-total-tokens": tokens, "--max-running-requests": self.requests}
        return [
            *(sys.executable, "-P", "-m", module, "--model-path", str(model), "--host", host, "--port", port),
            *("--skip-tokenizer-init", "--skip-server-warmup", "--log-level", "warning"),
            *("--served-model-name", name),
            *("--mem-fraction-static", str(config.memory_fraction)),
            *(word for flag, value in limits.items() if value is not None for word in (flag, str(value))),
            *override,
            "--sleep-on-idle",  # an idle scheduler would otherwise take a core from the learner
            *(["--enable-memory-saver"] if self.releases_memory else []),
            *ranks,
            *backends,
            *("--dtype", self.dtype, "--random-seed", str(self.seed), "--weight-version", *weights),
            *config.arguments,
        ]


def cuda_runtimes() -> list[str]:
    """The folders of CUDA runtimes that were installed as packages, as torch's requirements are."""
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None else spec.submodule_search_locations or []
    found = {str(file.parent) for root in roots for file in Path(root).glob("*/lib/libcudart.so.*")}
    return sorted(found)


def _joined(environment: Mapping[str, str], name: str, first: Sequence[str]) -> str:
    """A list of folders with `first` in front."""
    return os.pathsep.join([*first, *filter(None, [environment.get(name)])])
