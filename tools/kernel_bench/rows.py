"""What GiGPO does with every step and every token: hashing, grouping, advantages, the policy loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.advantage import Columns, Rules, hierarchical_advantage
from kernels.anchor import group_ids, hash_tokens
from kernels.policy_loss import policy_loss as fused_loss
from kernels.policy_loss import reference as loss_reference
from tools.kernel_bench.registry import Case, Missing, Outputs, Setting, needs_cuda, operation

STATES_PER_TASK = 60
STEPS, EPISODES = 25, 8  # of an episode, of a task


@operation
def hash_states(setting: Setting) -> Iterator[Case]:
    """128-bit keys of states of 512 tokens."""
    rows, length = (51200 if setting.cuda else 2048), 512
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 150000, rows * length, dtype=np.int32))
    offsets = torch.arange(rows + 1) * length
    on_host = (tokens.numpy(), offsets.numpy())
    given = (tokens.to(setting.device), offsets.to(setting.device))
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
            "python tuple hash": lambda: _tuple_hashes(*on_host),
        },
        notes={"python tuple hash": "64 bits, and the tuples are made"},
    )


def _tuple_hashes(tokens: np.ndarray, offsets: np.ndarray) -> Outputs:
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return {"hash": torch.tensor([hash(tuple(tokens[a:b].tolist())) for a, b in bounds])}


@operation
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


@operation
def advantage(setting: Setting) -> Iterator[Case]:
    """Returns, both levels of statistics and the spread to tokens."""
    for rows in _row_counts(setting):
        columns = _columns(rows)
        given = Columns(*(column.to(setting.device) for column in columns))
        on_host = Columns(*(column.numpy() for column in columns))
        tokens = int(columns[-1][-1])
        yield Case(
            op="advantage",
            shape=f"R{rows}-T{tokens}",
            flops=40.0 * rows,
            moved=rows * (7 * 8.0 + 3 * 4) + 4.0 * tokens,
            floor="columns read once, advantages written",
            exact=partial(_levels, on_host, "reference"),
            runs={
                "ours (triton)": partial(_on_cuda, setting, partial(_levels, given, "auto")),
                "ours (numpy)": partial(_levels, on_host, "reference"),
            },
        )


def _columns(rows: int) -> list[Tensor]:
    """reward, penalty, group, trajectory, step, step_group, token_offsets."""
    rng = np.random.default_rng(0)
    index = np.arange(rows)
    task, keys = _tasks_and_keys(rows)
    reward = np.where(index % STEPS == STEPS - 1, 10.0 * rng.integers(0, 2, rows), 0.0)
    penalty = 0.1 * (rng.random(rows) < 0.1)
    lengths = rng.integers(20, 180, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = group_ids(task.numpy(), keys.numpy())
    parts = (reward, penalty, task.numpy(), index // STEPS, index % STEPS, ids, offsets)
    return [torch.from_numpy(np.asarray(part)) for part in parts]


def _levels(columns: Columns[Any], backend: Any) -> Outputs:
    found = hierarchical_advantage(columns, Rules(), backend=backend)
    named = {"total": found.total, "token": found.token}
    return {name: torch.as_tensor(values) for name, values in named.items()}


Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
OPTIONS: dict[str, Any] = {
    "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0, "kl_coef": 0.01, "entropy_coef": 0.001
}  # fmt: skip


@operation
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
            exact=partial(_step, {n: c.double() for n, c in given.items()}, loss_reference.policy_loss),
            runs={
                "ours (triton)": partial(_on_cuda, setting, partial(_step, given, fused_loss)),
                "torch": partial(_step, given, loss_reference.policy_loss),
                "torch.compile": partial(_compiled, setting, given),
            },
        )


def _step(given: dict[str, Tensor], compute: Loss) -> Outputs:
    leaves = {name: given[name].detach().requires_grad_() for name in ("logprob", "entropy")}
    loss, _ = compute(**(given | leaves), **OPTIONS)
    d_logprob, d_entropy = torch.autograd.grad(loss, list(leaves.values()))
    return {"loss": loss.detach(), "d_logprob": d_logprob, "d_entropy": d_entropy}


def _compiled(setting: Setting, given: dict[str, Tensor]) -> Outputs:
    if setting.quick and not setting.cuda:
        raise Missing("compiles for a minute: not with --quick on a CPU")
    return _step(given, _compile())


@cache
def _compile() -> Loss:
    return torch.compile(loss_reference.policy_loss)


def _on_cuda(setting: Setting, work: Callable[[], Outputs]) -> Outputs:
    needs_cuda(setting)
    return work()
