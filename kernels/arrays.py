"""Columns are numpy arrays, which are computed on the host, or CUDA tensors, which are computed in Triton."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", NDArray[Any], "Tensor")


def uses_triton(array: NDArray[Any] | Tensor) -> bool:
    """Whether Triton computes on `array`: numpy arrays are computed on the host, CUDA tensors in Triton.

    Raises ValueError for a tensor that is not on a GPU, which only Triton's interpreter takes.
    """
    if isinstance(array, np.ndarray):
        return False
    if not array.is_cuda:
        from triton import knobs  # numpy callers do not load it

        if not knobs.runtime.interpret:
            raise ValueError(f"Triton needs CUDA tensors, got one on {array.device}: pass numpy arrays")
    return True


def triton_device() -> str | None:
    """The torch device on which Triton runs here: "cuda", "cpu" in its interpreter, or None."""
    if find_spec("triton") is None:
        return None
    import torch
    from triton import knobs

    if torch.cuda.is_available():
        return "cuda"
    return "cpu" if knobs.runtime.interpret else None


def to_device(column: NDArray[Any], device: Any) -> Tensor:
    """A tensor of `column` on `device`; on the CPU it shares the memory."""
    import torch

    return torch.from_numpy(column).to(device)


def to_host(column: NDArray[Any] | Tensor) -> NDArray[Any]:
    """The values as a numpy array; shares the memory of one that is on the host already."""
    return column if isinstance(column, np.ndarray) else column.cpu().numpy()


def check_column(name: str, array: NDArray[Any] | Tensor, dtype: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `array` has `dtype` ("int64") and `shape`, and a tensor is contiguous."""
    found = str(array.dtype).removeprefix("torch."), tuple(array.shape)
    if found != (dtype, shape):
        raise ValueError(f"{name} must be {dtype}{[*shape]}, got {found[0]}{[*found[1]]}")
    if not isinstance(array, np.ndarray) and not array.is_contiguous():
        raise ValueError(f"{name} must be a contiguous tensor: call contiguous() on it")
