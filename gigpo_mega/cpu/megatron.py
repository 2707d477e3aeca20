"""Make megatron-core's `torch.cuda` calls mean the CPU on a host without a GPU.

megatron-core allocates with device="cuda", asks for streams, forks "the CUDA RNG" and compares `param.type()`
with CUDA type names, even under gloo. `install()` maps each of these to its CPU meaning and must run before
megatron is imported. The function mode is per thread: other threads call `install_in_thread()`.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from typing import Any

import torch
from torch._C import default_generator
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


class _Stream:
    """A stream of a device that runs everything in order."""

    cuda_stream = 0
    device = _CPU

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, *_: Any) -> None:
        pass

    def wait_event(self, *_: Any) -> None:
        pass

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Event:
    """An event that has happened as soon as it is recorded; times are wall-clock milliseconds."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.seconds = 0.0

    def record(self, *_: Any) -> None:
        self.seconds = time.perf_counter()

    def wait(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return (other.seconds - self.seconds) * 1e3


def _names_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


class _CudaMeansCpu(TorchFunctionMode):
    """torch.zeros(device="cuda") lands on the CPU, t.cuda() is t, t.type() has the CUDA spelling."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if _names_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)


_installed = False


def needed() -> bool:
    """True on a host without a CUDA device."""
    return not torch.cuda.is_available()


def install() -> None:
    """Patch `torch.cuda` for this process and enter the function mode in the calling thread; idempotent."""
    global _installed
    if not needed() or _installed:
        return
    _installed = True
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex)")  # their absence is expected here
    # SGLang's flash_mla cannot be imported without a driver: an OSError, where megatron-core expects absence.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("flash_mla", None)
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    # One function each: torch._dynamo refuses names of different kinds that are the same object.
    cuda.synchronize = lambda *_, **__: None
    cuda.set_device = lambda *_, **__: None
    cuda.empty_cache = lambda: None
    cuda.Stream, cuda.Event = _Stream, _Event
    cuda.current_stream = cuda.default_stream = lambda *_, **__: _Stream()
    cuda.stream = lambda _: contextlib.nullcontext()
    # The "CUDA" RNG is the CPU RNG, so that tensor-parallel RNG forking keeps its meaning.
    # torch.cuda.manual_seed_all stays as it is: torch.manual_seed calls it.
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.random.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *_, **__: torch.random.set_rng_state(state)
    cuda.manual_seed = cuda.random.manual_seed = default_generator.manual_seed
    install_in_thread()
    import megatron.core.tensor_parallel.random as parallel_random

    patched: Any = parallel_random
    patched._set_cuda_rng_state = lambda state, *_, **__: torch.random.set_rng_state(state)
    patched._get_cuda_rng_state = lambda *_, **__: torch.random.get_rng_state()


def install_in_thread() -> None:
    """Enter the function mode in the calling thread."""
    if needed():
        _CudaMeansCpu().__enter__()
