"""Peak memory of one optimizer update of a small policy with a large vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gigpo_mega.config import BatchConfig, Config, KernelConfig, ObjectiveConfig, ParallelConfig
from gigpo_mega.learner import layout as layouts
from gigpo_mega.learner.learner import Learner, Report
from gigpo_mega.shape import ModelShape
from gigpo_mega.telemetry.provenance import provenance
from gigpo_mega.types import Step

PROMPT, RESPONSE = 8, 64  # tokens of a row
Backend = Literal["reference", "chunked", "triton"]


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the learner."""

    backend: str
    peak: int  # bytes beyond what was allocated before it
    logits: int  # bytes of one float32 [T, V]
    grad_norm: float  # of the first update
    weights: float  # sum of magnitudes afterwards


def shape(vocab: int, hidden: int, tied: bool) -> ModelShape:
    """One transformer layer with a large vocabulary."""
    return ModelShape(
        family="qwen2", vocab=vocab, hidden=hidden, ffn=2 * hidden, layers=1, heads=4, kv_heads=2,
        head_dim=hidden // 4, rope_theta=1e4, norm_epsilon=1e-6, max_positions=PROMPT + RESPONSE,
        tied=tied, qkv_bias=True,
    )  # fmt: skip


def steps(rows: int, vocab: int) -> tuple[Step, ...]:
    """Random rows of equal length."""
    rng = np.random.default_rng(0)
    return tuple(
        Step(
            rng.integers(0, vocab, PROMPT).astype(np.int32),
            rng.integers(0, vocab, RESPONSE).astype(np.int32),
            np.zeros(RESPONSE, np.float32), 0.0, True, rng.bytes(16), np.zeros(RESPONSE, np.int32),
        )
        for _ in range(rows)
    )  # fmt: skip


def loss(target: None, logprob: Tensor, entropy: Tensor) -> tuple[Tensor, Report]:
    """Negative log-likelihood with an entropy bonus, so that both outputs have a gradient."""
    return -(logprob + 0.01 * entropy).sum(), Report({})


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that `work` has allocated at once: torch's allocator events, or on CUDA its statistics."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    assert recorded.profiler is not None
    events: Any = recorded.profiler.kineto_results  # the public views drop the order of events
    sizes = [e.nbytes() for e in events.events() if e.name() == "[memory]"]
    return max(accumulate(sizes), default=0)


def update(
    backend: Backend, rows: int, vocab: int, hidden: int, tied: bool = True, overlap: bool = False
) -> Update:
    """Measure the second update, when the state of the optimizer exists."""
    cfg = Config(
        batch=BatchConfig(microbatch_tokens=rows * (PROMPT + RESPONSE)),
        objective=ObjectiveConfig(kl_coef=0.0),
        parallel=ParallelConfig(overlap_grad_reduce=overlap),
        kernels=KernelConfig(backend=backend),
    )
    layout = layouts.initialize(cfg.parallel, seed=0)
    torch.manual_seed(0)
    learner = Learner(cfg, shape(vocab, hidden, tied), layout)
    batches = [(batch, None) for batch in learner.pack(steps(rows, vocab), np.arange(rows))]
    first = learner.update(batches, loss)
    peak = peak_bytes(lambda: learner.update(batches, loss))
    magnitude = float(sum(p.detach().double().abs().sum() for p in learner.policy.parameters()))
    return Update(backend, peak, rows * RESPONSE * vocab * 4, first.grad_norm, magnitude)


def bench(rows: int, vocab: int, hidden: int) -> dict[str, Any]:
    """The record: one update with all logits, and one with the fused backend of this machine."""
    cuda = torch.cuda.is_available()
    backends: tuple[Backend, ...] = ("reference", "triton" if cuda else "chunked")
    return {
        **provenance("torch", "megatron-core", device="cuda" if cuda else "cpu"),
        "tokens": rows * RESPONSE,
        "vocab": vocab,
        "hidden": hidden,
        "updates": [asdict(update(backend, rows, vocab, hidden)) for backend in backends],
    }
