"""Where the learner runs and what it keeps: layout, kernels, checkpoints."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config.checks import STRICT, at_least, require


@dataclass(frozen=True, config=STRICT)
class ParallelConfig:
    """The layout; data-parallel size = world size / (tensor x pipeline x context)."""

    tensor: int = 1
    """Tensor-parallel size: ranks that share every layer."""
    pipeline: int = 1
    """Pipeline-parallel size: stages of consecutive layers."""
    virtual_pipeline: int = 1
    """Chunks of layers per stage; more shorten the pipeline's idle time (interleaved schedule)."""
    context: int = 1
    """Context-parallel size: ranks that share every sequence."""
    sequence_parallel: bool = False
    """Split activations along the sequence within a tensor-parallel group."""
    distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Sum gradients over data-parallel ranks while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather the distributed optimizer's parameters while the next forward pass goes on."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: attention's core (selective), or all of a layer."""
    timeout: float = 1800.0
    """Seconds that a rank waits in a collective for another, which is then taken for dead. Rollouts and the
    engine's start-up may take longer: ranks wait for the leader as long as it gives signs of life."""

    def data(self, world: int) -> int:
        """The data-parallel size of a launch of `world` processes."""
        return world // (self.tensor * self.pipeline * self.context)

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "parallel", self, "tensor", "pipeline", "virtual_pipeline", "context", "timeout")
        require(
            not self.sequence_parallel or self.tensor > 1,
            f"parallel.sequence_parallel needs parallel.tensor > 1, got {self.tensor}",
        )
        require(
            self.virtual_pipeline == 1 or self.pipeline > 1,
            f"parallel.virtual_pipeline {self.virtual_pipeline} needs parallel.pipeline > 1, "
            f"got {self.pipeline}",
        )
        require(
            not self.overlap_param_gather or (self.distributed_optimizer and self.overlap_grad_reduce),
            "parallel.overlap_param_gather needs parallel.distributed_optimizer and "
            "parallel.overlap_grad_reduce",
        )
        return self


@dataclass(frozen=True, config=STRICT)
class KernelConfig:
    """How the learner computes what it needs of every token."""

    backend: Literal["auto", "triton", "chunked", "reference"] = "auto"
    """Log-probabilities of the head: `triton` fuses product and softmax (bfloat16 on CUDA), `chunked` takes
    blocks with library products, `reference` keeps all logits; `auto` is the first of these that can run.
    With `reference` the policy loss, too, is plain torch where it would be Triton."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """What is kept, and when."""

    every: int = 10
    """Iterations between full checkpoints; collected groups are kept after every iteration anyway."""
    keep: int = 2
    """Full checkpoints kept."""
    groups_gib: float | None = 0.0
    """GiB of collected groups that stay on disk for `trace` and `replay`: the oldest iterations go first, but
    never what a resume needs. 0 keeps only that, null everything."""
    background: bool = False
    """Write checkpoints from a copy in host memory while the run goes on."""
    export: bool = True
    """Write the final policy as a Hugging Face directory, and its adapters, if any, as PEFT's."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        at_least(1, "checkpoint", self, "every", "keep")
        require(
            self.groups_gib is None or self.groups_gib >= 0,
            f"checkpoint.groups_gib must be >= 0 or null, got {self.groups_gib}",
        )
        return self
