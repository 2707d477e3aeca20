"""Benchmarks of the kernels against torch and other libraries; `gigpo-mega bench-kernels` runs them.

Importing this package loads neither torch nor Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.bench.case import Case, Setting

OPERATIONS = {
    "logprob": "kernels.bench.head",
    "hash_states": "kernels.bench.rows",
    "group_states": "kernels.bench.rows",
    "advantage": "kernels.bench.rows",
    "policy_loss": "kernels.bench.rows",
    "train_step": "kernels.bench.train_step",
}  # operation -> module with the function of that name, which makes its cases
PACKAGES = ("torch", "triton", "numpy", "megatron-core", "liger-kernel", "cut-cross-entropy", "verl")


def cases(operation: str, setting: Setting) -> Iterator[Case]:
    """The cases of one operation; the tensors of a case live until the next one is asked for."""
    make: Callable[[Setting], Iterator[Case]] = getattr(import_module(OPERATIONS[operation]), operation)
    return make(setting)
