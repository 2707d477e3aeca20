"""Patches Triton's interpreter, which silently computes on the raw bits of bfloat16 (3.6 and 3.7).

Products of bfloat16 are computed in float32, conversions round to the nearest even, and any other arithmetic
on bfloat16 raises: kernels upcast before they compute, and one that forgets would pass or fail by accident.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def patch() -> None:
    """Replace what is wrong in the interpreter; a second call changes nothing."""
    if getattr(InterpreterBuilder, "patched", False):
        return
    InterpreterBuilder.patched = True  # pyright: ignore[reportAttributeAccessIssue]
    InterpreterBuilder.create_dot = _dot_in_float32(InterpreterBuilder.create_dot)
    interpreter._convert_float = _rounding_to_nearest_even(interpreter._convert_float)
    for name in ("unary_op", "binary_op"):
        setattr(InterpreterBuilder, name, _refusing_bfloat16(getattr(InterpreterBuilder, name)))
    interpreter.ReduceOps.apply = _refusing_bfloat16(interpreter.ReduceOps.apply)


def _widened(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _dot_in_float32(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> Any:
        return original(self, _widened(a), _widened(b), *rest)

    return create_dot


def _rounding_to_nearest_even(original: Callable[..., Any]) -> Callable[..., Any]:
    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return original(data, source, target, rounding)
        bits = np.ascontiguousarray(data).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)

    return convert


def _refusing_bfloat16(original: Callable[..., Any]) -> Callable[..., Any]:
    def compute(self: Any, first: Any, *rest: Any) -> Any:
        if getattr(first, "dtype", tl.void).scalar == tl.bfloat16:
            raise TypeError("arithmetic on bfloat16 is wrong in the interpreter: convert to float32 first")
        return original(self, first, *rest)

    return compute
