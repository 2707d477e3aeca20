"""Seconds and peak memory of a function, and the roofline of this machine."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of one call."""

    median: float
    p5: float
    p95: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """Rates that the same run measured."""

    flops: float  # per second, in a square matrix product
    bytes: float  # per second, read and written by a copy
    product: str  # which product
    copy: str  # which copy

    def floor(self, flops: float, moved: float) -> float:
        """Least seconds of work that takes `flops` operations and moves `moved` bytes."""
        return max(flops / self.flops, moved / self.bytes)


def seconds(work: Callable[[], Any], device: torch.device, budget: float) -> Seconds:
    """Time calls of `work` for about `budget` seconds, and at least 3.

    On CUDA wall-clock with a cold level-2 cache; on a CPU in CPU time, which other programs do not change.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        spread: Any = do_bench(work, int(200 * budget), int(1000 * budget), quantiles=[0.05, 0.5, 0.95])
        low, median, high = spread
        return Seconds(median / 1e3, low / 1e3, high / 1e3)
    work()
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < budget and len(taken) < 1000):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    spread = torch.tensor(taken, dtype=torch.float64).quantile(torch.tensor([0.05, 0.5, 0.95]).double())
    low, median, high = spread.tolist()
    return Seconds(median, low, high)


def extra_memory(work: Callable[[], Any], device: torch.device) -> int | None:
    """Peak bytes that `work` allocates beyond what was allocated before it, its results included.

    On CUDA from the allocator; on a CPU from the kernel's high-water mark, None if /proc does not have it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else reused memory would not be counted
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident_bytes("VmRSS")
        work()
        return max(0, _resident_bytes("VmHWM") - before)
    except OSError:
        return None


def _resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def roofline(device: torch.device, budget: float) -> Roofline:
    """Measure a square matrix product, and a copy larger than any cache."""
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = seconds(lambda: a @ b, device, budget)
    count = (1 << 30) if cuda else (1 << 26)
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device, budget)
    kind = str(dtype).removeprefix("torch.")
    return Roofline(
        2 * size**3 / product.median, 2 * count / copy.median, f"{size}^3 {kind}", f"{count >> 20} MiB"
    )
