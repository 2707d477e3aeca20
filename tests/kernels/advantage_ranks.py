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

from kernels.advantage import Columns, Rules, hierarchical_advantage, triton
from kernels.anchor import group_ids, hash_tokens
from tests.kernels.advantage_tables import RULES, on, random_columns, take

ROWS, TASKS, TOKENS = 60, 7, 5


def advantages(columns: Columns[Any], states: np.ndarray[Any, Any], rules: Rules, backend: str) -> Tensor:
    """(total, episode, step) [3, N] of rows whose anchor states are TOKENS token ids."""
    keys = hash_tokens(states.ravel(), TOKENS * np.arange(len(states) + 1))
    anchors = group_ids(columns.group, keys)
    table = on(torch.device("cpu"), replace(columns, step_group=anchors))
    if backend == "triton":
        found = triton.hierarchical_advantage(table, rules, triton.Launch(32, 8, 16, 2))
    else:
        found = hierarchical_advantage(table, rules)
    return torch.stack([found.total, found.episode, found.step])


def of_ranks(ranks: int, columns: Columns[Any], states: Any, rules: Rules, backend: str) -> Tensor:
    """The advantages of all rows, put together from what the first `ranks` ranks computed."""
    rank, result = dist.get_rank(), torch.zeros(3, ROWS)
    if rank < ranks:
        mine = np.flatnonzero(columns.group % ranks == rank)
        mine = np.random.default_rng(rank).permutation(mine)
        result[:, mine] = advantages(take(columns, mine), states[mine], rules, backend)
    parts = [torch.empty_like(result) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, result)
    owner = torch.from_numpy(columns.group % ranks)
    return torch.stack(parts)[owner, :, torch.arange(ROWS)].T.contiguous()


def main() -> int:
    dist.init_process_group("gloo")
    columns = random_columns(ROWS, tasks=TASKS)
    states = np.random.default_rng(1).integers(0, 2, (ROWS, 1)).repeat(TOKENS, 1).astype(np.int32)
    whole = replace(columns, token_offsets=None)
    for backend, name in (("reference", "paper"), ("reference", "official"), ("triton", "paper")):
        for ranks in (1, 2, 4):
            found = of_ranks(ranks, columns, states, RULES[name], backend)
            if dist.get_rank() == 0:
                expected = advantages(whole, states, RULES[name], "reference")
                different = int((found.view(torch.int32) != expected.view(torch.int32)).sum())
                case = {"backend": backend, "rules": name, "ranks": ranks, "different": different,
                        "not_zero": int((expected[2] != 0).sum())}  # fmt: skip
                sys.stdout.write(f"RESULT {json.dumps(case)}\n")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
