"""torch's Adam under megatron's optimizers: what checkpoints need where neither TE nor Apex is installed.

megatron's checkpointing is written for fused Adam, whose `step` belongs to the parameter group. torch keeps
one for each parameter, and megatron's distributed optimizer neither saves nor restores those.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gigpo_mega.cpu import megatron as cpu_megatron

cpu_megatron.install()

from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer  # noqa: E402

USED = not HAVE_APEX_OR_TE


def step_count(optimizer: Any) -> float:
    """Updates that Adam has made; 0 before the first."""
    counts = {float(state["step"]) for state in _states(optimizer)}
    assert len(counts) <= 1, f"parameters disagree on Adam's step: {counts}"
    return counts.pop() if counts else 0.0


def prefill(optimizer: Any) -> None:
    """Give every parameter the empty state that the distributed optimizer asserts before it loads."""
    for adam in _adams(optimizer):
        for group in adam.param_groups:
            for parameter in group["params"]:
                if not adam.state[parameter]:
                    adam.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def restore_step_count(optimizer: Any, steps: float) -> None:
    """Give every parameter a `step` of its own: after loading all share one, which would count many times."""
    for state in _states(optimizer):
        state["step"] = torch.tensor(steps)


def parts(optimizer: Any) -> list[Any]:
    """The megatron optimizers that `optimizer` chains, or itself alone."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _adams(optimizer: Any) -> Iterator[torch.optim.Optimizer]:
    return (part.optimizer for part in parts(optimizer))


def _states(optimizer: Any) -> Iterator[dict[str, Tensor]]:
    return (state for adam in _adams(optimizer) for state in adam.state.values())


def _keep_step_on_load() -> None:
    """Loading replaces a parameter's whole state but carries no `step`: hand the present one through."""
    patched: Any = DistributedOptimizer
    original = patched._set_main_param_and_optimizer_states

    @functools.wraps(original)
    def with_step(self: Any, model_param: Any, tensors: dict[str, Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state and "step" not in tensors:
            tensors = {**tensors, "step": state["step"]}
        original(self, model_param, tensors)

    patched._set_main_param_and_optimizer_states = with_step


if USED:
    _keep_step_on_load()
