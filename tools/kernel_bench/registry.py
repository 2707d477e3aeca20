"""What can be benchmarked: operations, their shapes, and who implements them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]


class Missing(Exception):
    """An implementation that cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on one shape: the least work it is, and who does it."""

    op: str
    shape: str
    flops: float  # operations that cannot be avoided
    moved: float  # bytes that cannot be avoided
    floor: str  # what those two count
    exact: Callable[[], Outputs]  # in float64, or integers to be equal to
    runs: Mapping[str, Callable[[], Outputs]]  # by implementation; a call may raise Missing
    notes: Mapping[str, str] = field(default_factory=dict[str, str])  # what an implementation leaves out


@dataclass(frozen=True, slots=True)
class Setting:
    """Where, and how much of it."""

    device: torch.device
    quick: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


Operation = Callable[[Setting], Iterator[Case]]
OPERATIONS: dict[str, Operation] = {}


def operation(make: Operation) -> Operation:
    """Register a generator of cases under its name; a case's tensors live until the next is asked for."""
    OPERATIONS[make.__name__] = make
    return make


def needs_cuda(setting: Setting) -> None:
    """Raise Missing without a CUDA device: Triton's interpreter is no benchmark."""
    if not setting.cuda:
        raise Missing("needs a CUDA device")


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
