"""The layout of the learner: which rank does what, and the process groups behind it."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, ProcessGroupGloo, Store
from torch.distributed import distributed_c10d

from gigpo_mega.batching import Split
from gigpo_mega.config import ParallelConfig
from gigpo_mega.cpu import megatron as cpu_megatron
from gigpo_mega.errors import UserError

cpu_megatron.install()

from megatron.core import parallel_state, tensor_parallel  # noqa: E402  (after the CPU patches)
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402

# How megatron-core calls torch; nobody who runs us can mend it.
for _message in (
    r"`torch\.distributed\.\w+` is deprecated",
    r"`load_state_dict` is deprecated",
    r"Please use DTensor instead and we are deprecating ShardedTensor",
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    r"When using async grad allreduce it is recommended to set .* CUDA_DEVICE_MAX_CONNECTIONS",
):
    warnings.filterwarnings("ignore", message=_message)


@dataclass(frozen=True, slots=True)
class Layout:
    """This process's place in the grid world = tensor x pipeline x context x data."""

    rank: int
    world: int
    tensor: int
    tensor_rank: int
    pipeline: int
    pipeline_rank: int
    context: int
    context_rank: int
    data: int
    data_rank: int
    split: Split  # how rows become this rank's micro-batches
    device: torch.device

    @property
    def leader(self) -> bool:
        """True on the one rank that talks to engines, environments and people."""
        return self.rank == 0

    @property
    def last_stage(self) -> bool:
        """True where the pipeline ends: here are log-probabilities and losses."""
        return self.pipeline_rank == self.pipeline - 1

    @property
    def groups(self) -> ProcessGroupCollection:
        """The groups that megatron's schedules ask for."""
        names = ["tp", "pp", "cp", "embd", "pos_embd", "dp_cp"]
        return ProcessGroupCollection.use_mpu_process_groups(names)

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that share the layers of one pipeline stage."""
        return cast(dist.ProcessGroup, parallel_state.get_tensor_model_parallel_group())

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        """The ranks that hold the stages of one pipeline, first to last."""
        return cast(dist.ProcessGroup, parallel_state.get_pipeline_model_parallel_group())

    @property
    def context_group(self) -> dist.ProcessGroup:
        """The ranks that share the sequences of one micro-batch."""
        return cast(dist.ProcessGroup, parallel_state.get_context_parallel_group())

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The ranks that together see every row once."""
        return cast(dist.ProcessGroup, parallel_state.get_data_parallel_group())

    @property
    def replica_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same shard of the policy: data x context."""
        return cast(dist.ProcessGroup, parallel_state.get_data_parallel_group(with_context_parallel=True))


def world_from_environment() -> tuple[int, int]:
    """(rank, world size) as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def check_layout(cfg: ParallelConfig, world: int) -> None:
    """Raise UserError where `cfg` does not multiply to `world` processes, or wants a GPU that is missing."""
    if cfg.offload_optimizer and not torch.cuda.is_available():
        raise UserError(
            f"parallel.offload_optimizer {cfg.offload_optimizer} needs a GPU to take load off; "
            "here the CPU does all: set it to 0"
        )
    sizes = {"tensor": cfg.tensor, "pipeline": cfg.pipeline, "context": cfg.context}
    fixed = math.prod(sizes.values())
    if world % fixed:
        product = " x ".join(f"{name} {size}" for name, size in sizes.items())
        fields = " or ".join(f"parallel.{name}" for name, size in sizes.items() if size > 1)
        raise UserError(
            f"parallel: {product} x data = world size {world} has no whole solution for data: "
            f"start a multiple of {fixed} processes or change {fields}"
        )


def _split(cfg: ParallelConfig, ranks: int, rank: int) -> Split:
    # A rank of a context-parallel group takes one chunk from the front of a sequence and one from its back.
    sequence = 2 * cfg.context if cfg.context > 1 else 1
    columns = sequence * (cfg.tensor if cfg.sequence_parallel else 1)
    return Split(ranks, rank, sequence, columns, cfg.pipeline if cfg.virtual_pipeline > 1 else 1)


def initialize(cfg: ParallelConfig, seed: int, timeout: timedelta = timedelta(minutes=30)) -> Layout:
    """Join the world (torchrun's, or a world of one) and build megatron's process groups.

    Raises UserError where the layout does not fit the world size.
    """
    rank, world = world_from_environment()
    check_layout(cfg, world)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _one_gloo_device():
        _join(cfg, rank, world, "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    data = parallel_state.get_data_parallel_world_size()
    data_rank = parallel_state.get_data_parallel_rank()
    return Layout(
        rank=rank,
        world=world,
        tensor=cfg.tensor,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline=cfg.pipeline,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        context=cfg.context,
        context_rank=parallel_state.get_context_parallel_rank(),
        data=data,
        data_rank=data_rank,
        split=_split(cfg, data, data_rank),
        device=torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"),
    )


def _join(cfg: ParallelConfig, rank: int, world: int, backend: str, timeout: timedelta) -> None:
    """Make the groups that are not there yet: the world, then megatron's."""
    if not dist.is_initialized():
        if world == 1:
            dist.init_process_group(backend, store=HashStore(), rank=rank, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=cfg.tensor,
            pipeline_model_parallel_size=cfg.pipeline,
            virtual_pipeline_model_parallel_size=cfg.virtual_pipeline if cfg.virtual_pipeline > 1 else None,
            context_parallel_size=cfg.context,
        )


class _GlooOnOneDevice(ProcessGroupGloo):
    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        gloo: Any = ProcessGroupGloo  # the stubs do not know its options
        options = gloo._Options()
        options._devices, options._timeout = _gloo_devices(), timeout
        super().__init__(store, rank, size, options)


@functools.cache
def _gloo_devices() -> list[Any]:
    """This process's devices, as torch would choose them for each group anew."""
    interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
    if interfaces:
        return [ProcessGroupGloo.create_device(interface=name) for name in interfaces.split(",")]
    return [ProcessGroupGloo.create_default_device()]


@contextlib.contextmanager
def _one_gloo_device() -> Iterator[None]:
    """Gloo groups that are made within share a device.

    Torch makes one for each group, with a thread that wakes a hundred times a second; megatron asks for some
    thirty groups.
    """
    torch_module: Any = distributed_c10d
    torch_module.ProcessGroupGloo = _GlooOnOneDevice
    try:
        yield
    finally:
        torch_module.ProcessGroupGloo = ProcessGroupGloo


def shutdown() -> None:
    """Leave megatron's groups and the world."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
