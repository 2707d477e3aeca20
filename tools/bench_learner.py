"""Tokens per second of the learner's update, on random rows: `python tools/bench_learner.py`.

On CUDA the shape is Qwen2.5-1.5B's in bfloat16 (`--model` takes another that gigpo_mega.planning knows), on a
CPU a small one. Timed is what a run does with an iteration's rows: packing, forward and backward pass, policy
loss, gradient reduction and optimizer. `--backend` picks how log-probabilities are computed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gigpo_mega.config import BatchConfig, Config, EngineConfig, KernelConfig, ModelConfig, ObjectiveConfig
from gigpo_mega.errors import UserError, run_main
from gigpo_mega.types import Advantages, RowTable, Step
from kernels.logprob import Backend
from tools.kernel_bench.measure import extra_memory, roofline
from tools.kernel_bench.record import commit, device_name

try:
    from gigpo_mega.learner import parallel
    from gigpo_mega.learner.model import ModelShape
    from gigpo_mega.learner.policy import improve
    from gigpo_mega.learner.update import Learner, seed_everything
    from gigpo_mega.planning.devices import DEVICES
    from gigpo_mega.planning.shapes import find
except ModuleNotFoundError as missing:
    sys.stderr.write(f"error: the learner needs {missing.name}, which is not installed\n")
    sys.exit(3)


@dataclass(frozen=True, slots=True)
class Work:
    """Rows of one update."""

    rows: int
    prompt: int  # tokens
    response: int
    microbatch: int  # tokens in a micro-batch at most


CUDA_WORK, CPU_WORK = Work(64, 512, 512, 16384), Work(8, 48, 16, 256)


def cpu_shape() -> ModelShape:
    """Two narrow layers with a vocabulary that outweighs them."""
    narrow = {"hidden": 64, "ffn": 256, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16}
    return replace(find("qwen2.5-0.5b"), vocab=8192, max_positions=1024, **narrow)


def table(work: Work, vocab: int) -> tuple[RowTable, Advantages]:
    """Random rows, each a trajectory, with random advantages."""
    rng = np.random.default_rng(0)

    def row() -> Step:
        ids = rng.integers(0, vocab, work.prompt + work.response, dtype=np.int32)
        logprobs = np.full(work.response, -np.log(vocab), dtype=np.float32)
        return Step(ids[: work.prompt], ids[work.prompt :], logprobs, 0.0, True, rng.bytes(16), 0)

    index = np.arange(work.rows, dtype=np.int64)
    zeros = np.zeros(work.rows)
    anchor = np.zeros((work.rows, 2), dtype=np.uint64)
    steps = tuple(row() for _ in range(work.rows))
    total = rng.standard_normal(work.rows).astype(np.float32)
    rows = RowTable(index * 0, index, index * 0, zeros, zeros == 0, anchor, steps)
    return rows, Advantages(total, total, total * 0, index)


def measure(shape: ModelShape, work: Work, backend: Backend, updates: int) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    cfg = Config(
        model=ModelConfig(dtype="bfloat16" if cuda else "float32"),
        batch=BatchConfig(rows=None, microbatch_tokens=work.microbatch),
        kernels=KernelConfig(backend=backend),
        objective=ObjectiveConfig(kl_coef=0.0, old_logprob="engine"),
        engine=EngineConfig(max_logprob_gap=1e6),  # nobody sampled these rows
    )
    seed_everything(cfg.seed)
    layout = parallel.initialize(cfg.parallel, cfg.seed)
    learner = Learner(cfg, shape, layout)
    rows, advantages = table(work, shape.vocab)
    taken: list[float] = []

    def update() -> None:
        improve(learner, rows, advantages, cfg, len(taken))

    update()
    extra = extra_memory(update, layout.device)
    for _ in range(updates):
        begin = time.perf_counter()
        update()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    parallel.shutdown()
    roof = roofline(layout.device, 0.2)
    median = float(np.median(taken))
    cost = shape.cost.of(*(np.array([n]) for n in (work.prompt + work.response - 1, work.response)))
    flops = 6 * work.rows * float(cost[0])  # a multiply-add counts 2, a backward pass twice a forward
    return {
        "seconds": {"median": median, "min": min(taken), "max": max(taken)},
        "tokens_per_second": work.rows * (work.prompt + work.response) / median,
        "flops_per_second": flops / median,
        "of_measured_product": flops / median / roof.flops,
        "mfu": (flops / median / peak) if (peak := data_sheet(device_name(layout.device))) else None,
        "extra_bytes": extra,
        "roofline": asdict(roof),
    }


def data_sheet(name: str) -> float | None:
    """Dense bfloat16 operations per second that the maker states, where we know the device."""
    return next((d.flops for key, d in DEVICES.items() if key in name.lower()), None)


def main() -> int:
    """Print a line, and with --json the record as the last line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-1.5b" if cuda else None, help="a shape known by name")
    parser.add_argument("--rows", type=int, help="rows of an update")
    parser.add_argument("--updates", type=int, default=5, help="timed updates, after two to warm up")
    parser.add_argument("--backend", choices=get_args(Backend), default="auto", help="of log-probabilities")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    work = CUDA_WORK if cuda else CPU_WORK
    work = replace(work, rows=work.rows if options.rows is None else options.rows)
    if min(work.rows, options.updates) < 1:
        raise UserError(f"--rows and --updates must be >= 1, got {work.rows} and {options.updates}")
    if not cuda:
        torch.set_num_threads(1)
    shape = find(options.model) if options.model else cpu_shape()
    found = measure(shape, work, options.backend, options.updates)
    device = device_name(torch.device("cuda" if cuda else "cpu"))
    mfu = f", MFU {found['mfu']:.1%}" if found["mfu"] else ""
    print(f"{options.model or 'small'} on {device}: {found['tokens_per_second']:,.0f} tokens/s{mfu}, "
          f"{found['of_measured_product']:.1%} of a measured product")  # fmt: skip
    if options.json:
        what = {"benchmark": "learner", "model": options.model or "small", "backend": options.backend}
        print(json.dumps(what | {"device": device, "commit": commit(), "work": asdict(work)} | found))
    return 0


if __name__ == "__main__":
    run_main(main)
