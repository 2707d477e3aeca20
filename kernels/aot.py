"""Descriptions of the kernels that production launches: they are compiled and checked without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Variant:
    """One Triton kernel specialised as production launches it.

    `kernels/<op>/triton.py` lists every kernel and set of meta-parameters it may launch in `variants()`;
    `tools/aot_kernels.py` compiles them. Pointers are taken to be aligned to 16 bytes.
    """

    name: str  # unique within the operation
    kernel: Any  # what @triton.jit made
    signature: dict[str, str]  # of every other argument: "*bf16", "i32", "tensordesc<bf16[128, 64]>"
    constants: dict[str, Any]  # tl.constexpr arguments
    warps: int
    stages: int
    product: bool = False  # has a matrix product, which must compile to tensor-core instructions
    divisible: tuple[str, ...] = ()  # integer arguments that are multiples of 16
    targets: tuple[int, ...] = (80, 90, 100)  # compute capabilities that launch it, times ten
    fusion: bool = True  # of a product with the sum it goes into: they round once, not twice
