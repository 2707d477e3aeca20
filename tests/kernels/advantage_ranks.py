"""Groups and advantages of tasks sharded over 1, 2 and 4 ranks; rank 0 prints what differs from the whole.

    torchrun --nproc-per-node 4 tests/kernels/advantage_ranks.py

Each rank hashes, groups and compares the rows of its own tasks alone, in an order of its own.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kernels.anchor import hash_tokens
from tests.kernels.advantage_tables import RULES, AnchoredSteps, Rules, levels, on, random_steps, take

ROWS, TASKS, TOKENS = 60, 7, 5


def advantages(steps: AnchoredSteps, states: np.ndarray[Any, Any], rules: Rules, backend: str) -> Tensor:
    """Both levels [2, N] of rows whose anchor states are TOKENS token ids."""
    keys = hash_tokens(states.ravel(), TOKENS * np.arange(len(states) + 1))
    # Task numbers are below N, also in a shard of a few rows.
    group = np.unique(steps.group, return_inverse=True)[1]
    table = replace(steps, anchor=keys, group=group)
    if backend == "triton":
        table = on(torch.device("cpu"), table)
    return torch.stack([torch.as_tensor(level) for level in levels(table, rules)])


def of_ranks(ranks: int, steps: AnchoredSteps, states: Any, rules: Rules, backend: str) -> Tensor:
    """The advantages of all rows, put together from what the first `ranks` ranks computed."""
    rank, result = dist.get_rank(), torch.zeros(2, ROWS, dtype=torch.float64)
    if rank < ranks:
        mine = np.flatnonzero(steps.group % ranks == rank)
        mine = np.random.default_rng(rank).permutation(mine)
        result[:, mine] = advantages(take(steps, mine), states[mine], rules, backend)
    parts = [torch.empty_like(result) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, result)
    owner = torch.from_numpy(steps.group % ranks)
    return torch.stack(parts)[owner, :, torch.arange(ROWS)].T.contiguous()


def main() -> int:
    dist.init_process_group("gloo")
    steps = random_steps(ROWS, tasks=TASKS)
    states = np.random.default_rng(1).integers(0, 2, (ROWS, 1)).repeat(TOKENS, 1).astype(np.int32)
    for backend, name in (("numpy", "paper"), ("numpy", "official"), ("triton", "paper")):
        for ranks in (1, 2, 4):
            found = of_ranks(ranks, steps, states, RULES[name], backend)
            if dist.get_rank() == 0:
                expected = advantages(steps, states, RULES[name], "numpy")
                different = int((found.view(torch.int64) != expected.view(torch.int64)).sum())
                case = {"backend": backend, "rules": name, "ranks": ranks, "different": different,
                        "not_zero": int((expected[1] != 0).sum())}  # fmt: skip
                sys.stdout.write(f"RESULT {json.dumps(case)}\n")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
