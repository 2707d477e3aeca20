"""torch's Adam under megatron's optimizers: what checkpoints need if neither TE nor Apex is installed.

megatron's checkpointing is written for fused Adam, whose `step` belongs to the parameter group. torch keeps
one for each parameter, and megatron's distributed optimizer neither saves nor restores those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE
from torch import Tensor

USED = not HAVE_APEX_OR_TE
_FUSED_ON = "cuda"  # type of device


def step_count(optimizer: Any) -> float:
    """Updates that Adam has made; 0 before the first."""
    counts = {float(state["step"]) for adam in _adams(optimizer) for state in adam.state.values()}
    assert len(counts) <= 1, f"parameters disagree on Adam's step: {counts}"
    return counts.pop() if counts else 0.0


def fuse(optimizer: Any) -> None:
    """Let torch's Adam step in one kernel on a GPU: its other way takes a temporary as large as all it steps.

    To be called before the first step, and before `restore_step_count`.
    """
    for adam in _adams(optimizer):
        for group in adam.param_groups:
            if isinstance(adam, torch.optim.Adam) and group["params"]:
                group["fused"] = all(_fusible(adam, parameter) for parameter in group["params"])


def prefill(optimizer: Any) -> None:
    """Give every parameter the empty state that the distributed optimizer asserts before it loads."""
    for adam in _adams(optimizer):
        for group in adam.param_groups:
            for parameter in group["params"]:
                if not adam.state[parameter]:
                    adam.state[parameter] = {
                        "step": _count(0.0, adam, parameter),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def restore_step_count(optimizer: Any, steps: float) -> None:
    """Give every parameter a `step` of its own: after loading all share one, which would count many times."""
    for adam in _adams(optimizer):
        for parameter, state in adam.state.items():
            state["step"] = _count(steps, adam, parameter)


def _fusible(adam: torch.optim.Optimizer, parameter: Tensor) -> bool:
    return isinstance(adam, torch.optim.Adam) and parameter.device.type == _FUSED_ON


def _count(value: float, adam: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    """Adam's `step`: beside its parameter if a fused kernel reads it, else on the host."""
    return torch.tensor(value, device=parameter.device if _fusible(adam, parameter) else None)


def parts(optimizer: Any) -> list[Any]:
    """The megatron optimizers that `optimizer` chains, or itself alone."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _adams(optimizer: Any) -> Iterator[torch.optim.Optimizer]:
    return (part.optimizer for part in parts(optimizer))
