"""What GiGPO computes for every step and every token: hashing, grouping, advantages, the policy loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.advantage import Rule, StepColumns, relative, returns
from kernels.anchor import group_ids, hash_tokens
from kernels.bench.case import Case, Outputs, Setting, needs_cuda, needs_time
from kernels.policy_loss import policy_loss as fused_loss
from kernels.policy_loss import reference as loss_reference

STATES_PER_TASK = 60
STEPS, EPISODES = 25, 8  # steps of an episode, episodes of a task


def hash_states(setting: Setting) -> Iterator[Case]:
    """128-bit keys of states of 512 tokens."""
    rows, length = (51200 if setting.cuda else 2048), 512
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 150000, rows * length, dtype=np.int32))
    offsets = torch.arange(rows + 1) * length
    on_host = (tokens.numpy(), offsets.numpy())
    given = (tokens.to(setting.device), offsets.to(setting.device))

    def tuple_hashes() -> Outputs:
        bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        return {"hash": torch.tensor([hash(tuple(tokens[a:b].tolist())) for a, b in bounds])}

    yield Case(
        op="hash_tokens",
        shape=f"R{rows}-L{length}",
        flops=rows * length * 16,  # two lanes of two 64-bit halves, each four 32-bit multiply-adds, by pairs
        moved=rows * (4.0 * length + 16),
        floor="tokens read once",
        exact=lambda: {"keys": torch.from_numpy(hash_tokens(*on_host))},
        runs={
            "ours (triton)": partial(_on_cuda, setting, lambda: {"keys": hash_tokens(*given)}),
            "ours (numpy)": lambda: {"keys": torch.from_numpy(hash_tokens(*on_host))},
            "python tuple hash": tuple_hashes,
        },
        notes={"python tuple hash": "64 bits, and the tuples are made"},
    )


def group_states(setting: Setting) -> Iterator[Case]:
    """Ids of equal keys within a task, in order of first appearance."""
    for rows in _row_counts(setting):
        task, keys = _tasks_and_keys(rows)
        on_host = (task.numpy(), keys.numpy())
        given = (task.to(setting.device), keys.to(setting.device))
        yield Case(
            op="group_ids",
            shape=f"R{rows}",
            flops=rows,
            moved=32.0 * rows,
            floor="keys read once, ids written",
            exact=partial(_dictionary, *on_host),
            runs={
                "ours (triton)": partial(_on_cuda, setting, lambda given=given: {"ids": group_ids(*given)}),
                "ours (numpy)": lambda on_host=on_host: {"ids": torch.from_numpy(group_ids(*on_host))},
                "torch.unique": partial(_unique, *given),
                "python dict": partial(_dictionary, *on_host),
            },
            notes={"torch.unique": "in the keys' order"},
        )


def _row_counts(setting: Setting) -> tuple[int, ...]:
    return (51200,) if setting.quick else (51200, 409600)


def _tasks_and_keys(rows: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    task = np.arange(rows) // (STEPS * EPISODES)
    state = np.minimum(rng.geometric(0.05, rows), STATES_PER_TASK) + STATES_PER_TASK * task
    pool = rng.integers(-(2**63), 2**63 - 1, (int(state.max()) + 1, 2))
    return torch.from_numpy(task), torch.from_numpy(pool[state])


def _dictionary(task: np.ndarray, keys: np.ndarray) -> Outputs:
    seen: dict[tuple[int, int, int], int] = {}
    triples = zip(task.tolist(), keys[:, 0].tolist(), keys[:, 1].tolist(), strict=True)
    return {"ids": torch.tensor([seen.setdefault(triple, len(seen)) for triple in triples])}


def _unique(task: Tensor, keys: Tensor) -> Outputs:
    triples = torch.cat([task[:, None], keys], dim=1)
    return {"sorted": torch.unique(triples, dim=0, return_inverse=True)[1]}


def advantage(setting: Setting) -> Iterator[Case]:
    """GiGPO's two levels: returns, and values relative to their task and to their anchor group."""
    for rows in _row_counts(setting):
        steps, ids = _steps(rows)
        given = StepColumns(*(column.to(setting.device) for column in steps)), ids.to(setting.device)
        on_host = StepColumns(*(column.numpy() for column in steps)), ids.numpy()
        yield Case(
            op="advantage",
            shape=f"R{rows}",
            flops=40.0 * rows,
            moved=rows * (6 * 8.0 + 8),
            floor="columns read once, advantages written",
            exact=partial(_total, *on_host),
            runs={
                "ours (triton)": partial(_on_cuda, setting, partial(_total, *given)),
                "ours (numpy)": partial(_total, *on_host),
            },
        )


def _steps(rows: int) -> tuple[list[Tensor], Tensor]:
    """reward, penalty, group, trajectory, step; and the anchor group of every row."""
    rng = np.random.default_rng(0)
    index = np.arange(rows)
    task, keys = _tasks_and_keys(rows)
    reward = np.where(index % STEPS == STEPS - 1, 10.0 * rng.integers(0, 2, rows), 0.0)
    penalty = 0.1 * (rng.random(rows) < 0.1)
    parts = (reward, penalty, task.numpy(), index // STEPS, index % STEPS)
    ids = group_ids(task.numpy(), keys.numpy())
    return [torch.from_numpy(np.asarray(part)) for part in parts], torch.from_numpy(ids)


def _total(steps: StepColumns[Any], ids: Any) -> Outputs:
    score, discounted = returns(steps, gamma=0.95)
    episode = relative(score, steps.group, Rule(), steps.step == 0)
    return {"total": torch.as_tensor(episode + relative(discounted, ids, Rule()))}


Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
OPTIONS: dict[str, Any] = {
    "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0, "kl_coef": 0.01, "entropy_coef": 0.001
}  # fmt: skip


def policy_loss(setting: Setting) -> Iterator[Case]:
    """Loss, metrics and both gradients, with a reference policy and entropy."""
    for tokens in (65536,) if setting.quick else (65536, 1 << 20):
        noise = torch.randn(6, tokens, generator=torch.Generator().manual_seed(0)).mul(0.3).to(setting.device)
        weight, entropy = torch.ones_like(noise[0]), noise[5].abs()
        given = {"logprob": noise[0], "old_logprob": noise[1], "advantage": noise[2], "weight": weight,
                 "ref_logprob": noise[3], "entropy": entropy}  # fmt: skip
        yield Case(
            op="policy_loss",
            shape=f"T{tokens}",
            flops=60.0 * tokens,
            moved=4.0 * 8 * tokens,
            floor="six columns read once, two gradients written",
            exact=partial(_gradients, {n: c.double() for n, c in given.items()}, loss_reference.policy_loss),
            runs={
                "ours (triton)": partial(_on_cuda, setting, partial(_gradients, given, fused_loss)),
                "torch": partial(_gradients, given, loss_reference.policy_loss),
                "torch.compile": lambda given=given: _gradients(given, _compiled(setting)),
            },
        )


def _gradients(given: dict[str, Tensor], compute: Loss) -> Outputs:
    leaves = {name: given[name].detach().requires_grad_() for name in ("logprob", "entropy")}
    loss, _ = compute(**(given | leaves), **OPTIONS)
    d_logprob, d_entropy = torch.autograd.grad(loss, list(leaves.values()))
    return {"loss": loss.detach(), "d_logprob": d_logprob, "d_entropy": d_entropy}


@cache
def _compiled(setting: Setting) -> Loss:
    needs_time(setting)
    return torch.compile(loss_reference.policy_loss)


def _on_cuda(setting: Setting, work: Callable[[], Outputs]) -> Outputs:
    needs_cuda(setting)
    return work()
