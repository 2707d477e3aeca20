"""Operations on columns take numpy arrays or torch tensors, and return what they were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", NDArray[Any], "Tensor")
Backend = Literal["auto", "triton", "reference"]


def uses_triton(like: NDArray[Any] | Tensor, backend: Backend) -> bool:
    """Whether Triton computes on arrays such as `like`: `auto` takes it for CUDA tensors only."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if isinstance(like, np.ndarray):
        if backend == "triton":
            raise ValueError("backend 'triton' needs torch tensors, got numpy arrays: take auto or reference")
        return False
    return like.is_cuda if backend == "auto" else backend == "triton"


def to_numpy(array: NDArray[Any] | Tensor) -> NDArray[Any]:
    """The values on the host; shares the memory of an array that is there already."""
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()


def from_numpy(values: NDArray[Any], like: Array) -> Array:
    """`values` as the kind of array, and on the device, that `like` is."""
    if isinstance(like, np.ndarray):
        return values
    import torch  # numpy callers need not have loaded it

    return torch.from_numpy(values).to(like.device)


def check_column(name: str, array: NDArray[Any] | Tensor, dtype: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `array` has `dtype` ("int64") and `shape`, and a tensor is contiguous."""
    found = str(array.dtype).removeprefix("torch."), tuple(array.shape)
    if found != (dtype, shape):
        raise ValueError(f"{name} must be {dtype}{[*shape]}, got {found[0]}{[*found[1]]}")
    if not isinstance(array, np.ndarray) and not array.is_contiguous():
        raise ValueError(f"{name} must be a contiguous tensor: call contiguous() on it")
