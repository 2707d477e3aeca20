"""Tensors without data and process groups without peers, for code of the learner at any size.

Fake tensors (torch._subclasses.fake_tensor) have a shape, a type and a storage of some size; fake process
groups (torch.testing._internal.distributed.fake_pg) return from a collective at once. Where a GPU has one
kernel for what is many operations on a CPU, only what the kernel returns and keeps is allocated: norms,
attention and our Triton kernels.
"""

from __future__ import annotations

import os
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gigpo_mega.cpu import megatron
from gigpo_mega.learner import layers
from gigpo_mega.learner import layout as layouts
from kernels.logprob import blocks
from kernels.logprob import triton as logprob

_BETWEEN = (str(Path(torch.__file__).parent), megatron.__file__, __file__)  # a caller of torch and the meter


class Meter(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, and the numbers that the host reads.

    A number that is read is 1, as a fake tensor has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = Counter[str]()  # by module and function of the reader
        self.now = self.peak = 0
        self.kept: int | None = None  # when the first backward pass began
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_BETWEEN)]
            self.reads[f"{Path(frames[-1].filename).stem}.{frames[-1].name}"] += 1
            return 1.0
        if func.namespace == "c10d" and "coalesced" in func.__name__:  # torch has no fake of these
            work: Any = FakeWork()
            work.seq_id = 0
            return work.boxed()
        if self.kept is None and torch._C._current_graph_task_id() != -1:
            self.kept = self.now
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class _FusedNorm(torch.autograd.Function):
    """What torch's RMSNorm on CUDA returns and keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class _CudaKernels(TorchFunctionMode):
    """Norms and attention by the kernels of a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.rms_norm:
            return _FusedNorm.apply(args[0], kwargs["weight"])
        if func is F.scaled_dot_product_attention:
            attend = torch.ops.aten._scaled_dot_product_flash_attention
            return attend(*args[:3], is_causal=True, scale=kwargs["scale"])[0]
        return func(*args, **kwargs)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _mask(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


_STAND_INS = (
    (logprob, "_check", _nothing),
    (logprob, "_tile", lambda table, *_: table[90]),
    (logprob, "_source", _nothing),
    (logprob, "_launch", _nothing),
    (blocks, "add_product", _nothing),  # on a GPU one product in place; a CPU needs float32 copies
)


@contextmanager
def without_data(gpu: bool) -> Iterator[Meter]:
    """What is computed in this block has no data; yields what counts it. With `gpu`, a GPU's kernels."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(layers, "causal_lower_right", _mask))  # torch's is no fake tensor
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        meter = stack.enter_context(Meter())
        if gpu:
            stack.enter_context(_CudaKernels())
            for module, name, stand_in in _STAND_INS:
                stack.enter_context(patch.object(module, name, stand_in))
        yield meter


@contextmanager
def without_peers(rank: int, world: int) -> Iterator[None]:
    """This process is `rank` of `world`, and alone: what a collective would receive stays as it was."""
    new_group = dist.new_group

    def fake_group(*args: Any, **options: Any) -> Any:
        return new_group(*args, **(options | {"backend": "fake", "pg_options": None}))

    def gather(found: list[Any], mine: Any, group: Any = None) -> None:
        found[:] = [mine] * len(found)

    # The tracker of a training run compares states of the CPU's generator, which are no fake tensors.
    tensor_parallel.random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
    with (
        patch.dict(os.environ, RANK=str(rank), WORLD_SIZE=str(world)),
        patch.object(dist, "new_group", fake_group),
        patch.object(dist, "all_gather_object", gather),
    ):
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        try:
            yield
        finally:
            layouts.shutdown()
