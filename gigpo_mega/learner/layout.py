"""The layout of the learner: which rank does what, and the process groups behind it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch._C._distributed_c10d import HashStore

from gigpo_mega.batching import Split
from gigpo_mega.config import ParallelConfig
from gigpo_mega.launch import rank_and_world
from gigpo_mega.learner import gloo
from gigpo_mega.shape import check_world

SILENCE = timedelta(minutes=2)  # of a busy leader, after which the others take it for dead


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
    waiting_group: dist.ProcessGroup | None  # all ranks, for the leader's signs of life; None for one rank
    device: torch.device

    @property
    def leader(self) -> bool:
        """True on the one rank that talks to engines, environments and people."""
        return self.rank == 0

    @property
    def last_stage(self) -> bool:
        """True if the pipeline ends: here are log-probabilities and losses."""
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


def initialize(cfg: ParallelConfig, seed: int) -> Layout:
    """Join the world (torchrun's, or a world of one) and build megatron's process groups.

    Raises UserError if the layout does not fit the world size.
    """
    rank, world = rank_and_world()
    check_world(cfg, world)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with gloo.one_device():
        _join(cfg, rank, world, "cpu:gloo,cuda:nccl" if cuda else "gloo")
        waiting = cast(dist.ProcessGroup, dist.new_group(timeout=SILENCE, backend="gloo"))
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
        split=Split.of(cfg, data, data_rank),
        waiting_group=waiting if world > 1 else None,
        device=torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"),
    )


def _join(cfg: ParallelConfig, rank: int, world: int, backend: str) -> None:
    """Make the groups that are not there yet: the world, then megatron's."""
    timeout = timedelta(seconds=cfg.timeout)
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
            distributed_timeout_minutes=math.ceil(cfg.timeout / 60),
        )


def shutdown() -> None:
    """Leave megatron's groups and the world."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
