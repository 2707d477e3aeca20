"""Throughput of the policy update on random rows."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from gigpo_mega.config import BatchConfig, Config, KernelConfig, ModelConfig, ObjectiveConfig, WeightsConfig
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner.layout import Layout
from gigpo_mega.learner.learner import Learner
from gigpo_mega.learner.update import update_policy
from gigpo_mega.planning.devices import DEVICES
from gigpo_mega.planning.shapes import find
from gigpo_mega.shape import ModelShape
from gigpo_mega.telemetry.provenance import device_name, provenance
from gigpo_mega.types import Advantages, RowTable, Step
from gigpo_mega.weights import live
from kernels.bench.measure import extra_memory, roofline
from kernels.logprob import LogprobBackend


@dataclass(frozen=True, slots=True)
class Work:
    """Rows of one update."""

    rows: int
    prompt: int  # tokens
    response: int
    microbatch: int  # tokens in a micro-batch at most


CUDA_WORK, CPU_WORK = Work(64, 512, 512, 8192), Work(8, 48, 16, 256)


def cpu_shape() -> ModelShape:
    """Two narrow layers, and a vocabulary that takes most of the work."""
    narrow = {"hidden": 64, "ffn": 256, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16}
    return replace(find("qwen2.5-0.5b"), vocab=8192, max_positions=1024, **narrow)


def table(work: Work, vocab: int) -> tuple[RowTable, Advantages]:
    """Random rows, each a trajectory, with random advantages."""
    rng = np.random.default_rng(0)

    def row() -> Step:
        ids = rng.integers(0, vocab, work.prompt + work.response, dtype=np.int32)
        logprobs = np.full(work.response, -np.log(vocab), dtype=np.float32)
        prompt, response = ids[: work.prompt], ids[work.prompt :]
        return Step(prompt, response, logprobs, 0.0, True, rng.bytes(16), np.zeros_like(response))

    index = np.arange(work.rows, dtype=np.int64)
    zeros = np.zeros(work.rows)
    anchor = np.zeros((work.rows, 2), dtype=np.uint64)
    steps = tuple(row() for _ in range(work.rows))
    total = rng.standard_normal(work.rows).astype(np.float32)
    rows = RowTable(index * 0, index, index * 0, zeros, zeros == 0, anchor, steps)
    return rows, Advantages(total, total, total * 0, index)


def random_learner(cfg: Config, shape: ModelShape, layout: Layout) -> Learner:
    """A learner with random weights, drawn where they lie: megatron draws on the CPU, 6 s per 1e9 weights."""
    learner = Learner(cfg, shape, layout, empty=True)
    draw = torch.Generator(layout.device).manual_seed(cfg.seed)
    with torch.no_grad():
        for place, parameter in live.parameters(learner.policy, shape):
            if parameter.dim() > 1:
                parameter.normal_(std=0.02, generator=draw)
            else:
                parameter.fill_(all(name.endswith("norm.weight") for name in place.hf))
    learner.refresh()
    return learner


def settings(work: Work, backend: LogprobBackend, cuda: bool) -> Config:
    """One update with all rows, by a policy in the type that the device is for."""
    return Config(
        model=ModelConfig(dtype="bfloat16" if cuda else "float32"),
        batch=BatchConfig(rows_per_update=None, microbatch_tokens=work.microbatch),
        kernels=KernelConfig(backend=backend),
        objective=ObjectiveConfig(kl_coef=0.0, old_logprob="engine"),
        weights=WeightsConfig(max_logprob_gap=1e6),  # no engine sampled these rows
    )


def bench(
    model: str | None, layers: int | None, rows: int | None, backend: LogprobBackend, updates: int
) -> dict[str, Any]:
    """The record; on a CPU on one thread. None for `model` and `rows` takes those for the device."""
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(1)
    work = CUDA_WORK if cuda else CPU_WORK
    work = replace(work, rows=work.rows if rows is None else rows)
    name = model or ("qwen2.5-1.5b" if cuda else "small")
    shape = cpu_shape() if name == "small" else find(name)
    shape = replace(shape, layers=layers or shape.layers)
    return {
        "benchmark": "learner",
        **provenance("torch", "megatron-core", "triton", device="cuda" if cuda else "cpu"),
        "model": name,
        "layers": shape.layers,
        "backend": backend,
        "work": asdict(work),
        **measure(shape, work, backend, updates),
    }


def measure(shape: ModelShape, work: Work, backend: LogprobBackend, updates: int) -> dict[str, Any]:
    """Seconds, tokens per second, operations per second and extra memory of `updates` policy updates."""
    cuda = torch.cuda.is_available()
    cfg = settings(work, backend, cuda)
    layout = layouts.initialize(cfg.parallel, cfg.seed)
    learner = random_learner(cfg, shape, layout)
    rows, advantages = table(work, shape.vocab)
    taken: list[float] = []

    def update() -> None:
        update_policy(learner, rows, advantages, cfg, len(taken))

    update()
    extra = extra_memory(update, layout.device)
    for _ in range(updates):
        begin = time.perf_counter()
        update()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    layouts.shutdown()
    roof = roofline(layout.device, 0.2)
    median = float(np.median(taken))
    cost = shape.cost.of(*(np.array([n]) for n in (work.prompt + work.response - 1, work.response)))
    flops = 6 * work.rows * float(cost[0])  # a multiply-add counts 2, a backward pass twice a forward
    return {
        "seconds": {"median": median, "min": min(taken), "max": max(taken)},
        "tokens_per_second": work.rows * (work.prompt + work.response) / median,
        "flops_per_second": flops / median,
        "of_measured_product": flops / median / roof.flops,
        "mfu": (flops / median / peak) if (peak := data_sheet(device_name(layout.device.type))) else None,
        "extra_bytes": extra,
        "roofline": asdict(roof),
    }


def data_sheet(name: str) -> float | None:
    """Dense bfloat16 operations per second from the data sheet of a known GPU, else None."""
    return next((d.flops for key, d in DEVICES.items() if key in name.lower()), None)
