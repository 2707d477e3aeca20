"""Peak memory of one update of the learner, with fused log-probs and with logits.

`python tools/step_memory.py` builds a small policy with a large vocabulary, once for each `kernels.backend`,
and counts every byte that one update allocates beyond what it began with (on the CPU by torch's allocator
events, on CUDA by its statistics); `--record` writes docs/benchmarks/step_memory.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gigpo_mega.batching import MicroBatch
from gigpo_mega.config import BatchConfig, Config, KernelConfig, ObjectiveConfig, ParallelConfig
from gigpo_mega.errors import run_main
from gigpo_mega.learner import parallel
from gigpo_mega.learner.model import ModelShape
from gigpo_mega.learner.update import Learner, Report, seed_everything
from gigpo_mega.types import Step

RECORD = Path(__file__).parent.parent / "docs" / "benchmarks" / "step_memory.json"
PROMPT, RESPONSE = 8, 64  # tokens of a row
Backend = Literal["reference", "chunked", "triton"]


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the learner."""

    backend: str
    peak: int  # bytes at once beyond what was there before
    logits: int  # bytes of one float32 [T, V]
    grad_norm: float  # of the first update
    weights: float  # sum of magnitudes afterwards


def shape(vocab: int, hidden: int, tied: bool) -> ModelShape:
    """One layer under a large head."""
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
            np.zeros(RESPONSE, np.float32), 0.0, True, rng.bytes(16), 0,
        )
        for _ in range(rows)
    )  # fmt: skip


def loss(index: int, batch: MicroBatch, logprob: Tensor, entropy: Tensor) -> tuple[Tensor, Report]:
    """Likelihood with an entropy bonus: both outputs have a gradient."""
    return -(logprob + 0.01 * entropy).sum(), Report({})


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that `work` had allocated at once."""
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
    """Measure the second update, when the optimizer's state is there."""
    cfg = Config(
        batch=BatchConfig(microbatch_tokens=rows * (PROMPT + RESPONSE)),
        objective=ObjectiveConfig(kl_coef=0.0),
        parallel=ParallelConfig(overlap_grad_reduce=overlap),
        kernels=KernelConfig(backend=backend),
    )
    layout = parallel.initialize(cfg.parallel, seed=0)
    seed_everything(0)
    learner = Learner(cfg, shape(vocab, hidden, tied), layout)
    batches = learner.pack(steps(rows, vocab), np.arange(rows))
    first = learner.update(batches, loss)
    peak = peak_bytes(lambda: learner.update(batches, loss))
    magnitude = float(sum(p.detach().double().abs().sum() for p in learner.policy.parameters()))
    return Update(backend, peak, rows * RESPONSE * vocab * 4, first.grad_norm, magnitude)


def main() -> int:
    """Print a line per backend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16, help=f"rows of {RESPONSE} response tokens")
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args()
    backends: list[Backend] = ["reference", "triton" if torch.cuda.is_available() else "chunked"]
    found = [update(backend, options.rows, options.vocab, options.hidden) for backend in backends]
    for one in found:
        tensors = one.peak / one.logits
        print(f"{one.backend:10} {one.peak / 2**20:8.1f} MiB at the peak = {tensors:.2f} float32 [T, V]")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    record: dict[str, Any] = {
        "command": f"python tools/step_memory.py --rows {options.rows} --vocab {options.vocab} "
                   f"--hidden {options.hidden}",
        "device": device, "torch": torch.__version__, "tokens": options.rows * RESPONSE,
        "vocab": options.vocab, "hidden": options.hidden, "updates": [asdict(one) for one in found],
    }  # fmt: skip
    if options.record:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
