"""kernels.logprob over a split vocabulary; rank 0 prints one JSON line per case.

    torchrun --nproc-per-node 4 tests/kernels/logprob_ranks.py

Cases run on all 4 ranks, and on two groups of 2 at once.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from kernels.logprob import linear_logprob
from tests.kernels import exact, interpreter

ROWS_A_RANK = 20
REAL = {"whole": 80, "padded": 71, "a rank of padding": 58}


@dataclass(frozen=True)
class Found:
    """What one case measured; errors are of the largest magnitude."""

    backend: str
    ranks: int
    case: str
    gathers: int  # collectives of a forward pass
    same_bits: bool  # log-probs and entropies, on every rank
    value_error: float
    one_rank_error: float  # against the same backend on an unsplit vocabulary
    gradient_error: float


def measure(backend: Any, group: dist.ProcessGroup, case: str) -> Found:
    """One case on this rank's group."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    rows = ROWS_A_RANK * 4 // world
    hidden, weight, target, *upstream = exact.inputs(tokens=9, width=16, vocab=4 * ROWS_A_RANK)
    target = target.clamp(max=REAL[case] - 1)
    options: Any = {"temperature": torch.linspace(0.5, 2.0, 9), "vocab_size": REAL[case]}
    expected = exact.linear_logprob(hidden, weight, target, *upstream, **options)
    alone = linear_logprob(hidden, weight, target, backend=backend, **options)
    options |= {"group": group, "vocab_start": rank * rows, "backend": backend}
    h = hidden.clone().requires_grad_()
    w = weight[rank * rows :][:rows].clone().requires_grad_()
    with CommDebugMode() as collectives:
        result = torch.stack(linear_logprob(h, w, target, **options))
    (torch.stack(upstream) * result).sum().backward()
    assert h.grad is not None
    assert w.grad is not None
    dist.all_reduce(h.grad, group=group)
    everyone = [torch.empty_like(result) for _ in range(world)]
    dist.all_gather(everyone, result.detach(), group)
    return Found(
        backend,
        world,
        case,
        collectives.get_total_counts(),
        all(torch.equal(everyone[0], other) for other in everyone),
        _largest(result, torch.stack(expected[:2])),
        _largest(result, torch.stack(alone)),
        max(_largest(h.grad, expected[2]), _largest(w.grad, expected[3][rank * rows :][:rows])),
    )


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def main() -> None:
    """Print every case."""
    interpreter.patch()
    dist.init_process_group("gloo")
    pairs: list[Any] = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    everyone = dist.group.WORLD
    assert everyone is not None
    for backend in ("reference", "chunked", "triton"):
        for group in (pairs[dist.get_rank() // 2], everyone):
            for case in REAL:
                found = measure(backend, group, case)
                if dist.get_rank() == 0:
                    sys.stdout.write(f"RESULT {json.dumps(asdict(found))}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
