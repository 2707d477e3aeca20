"""A benchmark case: one operation on one shape, the least work it takes, and its implementations."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.bench.measure import Roofline, Seconds, extra_memory, seconds

Outputs = Mapping[str, Tensor]


class Missing(Exception):
    """An implementation cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The device, and whether only the first shape of each operation is measured."""

    device: torch.device
    quick: bool

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on one shape."""

    op: str
    shape: str
    flops: float  # operations that cannot be avoided
    moved: float  # bytes that cannot be avoided
    floor: str  # what those two count
    exact: Callable[[], Outputs]  # in float64, or integers to be equal to
    runs: Mapping[str, Callable[[], Outputs]]  # by implementation; a call may raise Missing
    notes: Mapping[str, str] = field(default_factory=dict[str, str])  # what an implementation leaves out


@dataclass(frozen=True, slots=True)
class Result:
    """One implementation on one shape; without `seconds` it did not run, and `note` says why."""

    op: str
    shape: str
    implementation: str
    note: str = ""
    seconds: Seconds | None = None
    flops: float = 0.0  # that cannot be avoided
    moved: float = 0.0  # bytes that cannot be avoided
    fraction: float = 0.0  # of the measured floor
    extra_bytes: int | None = None
    errors: dict[str, float] | None = None


def measure(case: Case, setting: Setting, roof: Roofline, budget: float) -> Iterator[Result]:
    """Time each implementation of `case` for about `budget` seconds; a failure of one leaves the others."""
    exact = case.exact()
    for name, run in case.runs.items():
        try:
            found = error(run(), exact)
            extra = extra_memory(run, setting.device)
            taken = seconds(run, setting.device, budget)
        except Missing as why:
            yield Result(case.op, case.shape, name, str(why))
        except Exception as broken:
            lines = str(broken).strip().splitlines() or [""]
            yield Result(case.op, case.shape, name, f"{type(broken).__name__}: {lines[0][:200]}")
        else:
            yield Result(
                case.op, case.shape, name, case.notes.get(name, ""), taken, case.flops, case.moved,
                roof.floor(case.flops, case.moved) / taken.median, extra, found,
            )  # fmt: skip
        gc.collect()
        if setting.cuda:
            torch.cuda.empty_cache()


def needs_cuda(setting: Setting) -> None:
    """Raise Missing without a CUDA device: the speed of Triton's interpreter means nothing."""
    if not setting.cuda:
        raise Missing("needs a CUDA device")


def needs_time(setting: Setting) -> None:
    """Raise Missing in a quick run on a CPU, in which torch.compile would take a minute."""
    if setting.quick and not setting.cuda:
        raise Missing("compiles for a minute: not with --quick on a CPU")


def error(found: Outputs, exact: Outputs) -> dict[str, float]:
    """By name in both: |found - exact| / |exact| (2-norms), or the share of integers that differ."""
    errors: dict[str, float] = {}
    for name in found.keys() & exact.keys():
        one, other = found[name].to(exact[name].device), exact[name]
        if not other.is_floating_point():
            errors[name] = (one != other).double().mean().item()
        else:
            errors[name] = ((one.double() - other).norm() / other.norm().clamp(min=1e-300)).item()
    return dict(sorted(errors.items()))
