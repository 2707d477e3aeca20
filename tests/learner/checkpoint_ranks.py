"""Checkpoints of a larger policy on every rank of a launch; prints what each found, one JSON line a case.

    torchrun --nproc-per-node 4 tests/learner/checkpoint_ranks.py POLICY OUTPUT write:tensor=2 ...

`write` saves a learner after an iteration in OUTPUT/written; `copy` loads that one and saves it in
OUTPUT under the name of the case. Either is a layout: fields of ParallelConfig and BatchConfig.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from megatron.core import parallel_state

from gigpo_mega.config import CheckpointConfig
from gigpo_mega.learner import layout as parallel
from gigpo_mega.learner.checkpoint import Checkpoints
from gigpo_mega.storage.manifest import FileDigest
from tests.learner import ranks
from tools.bench.step_memory import peak_bytes


@dataclass
class Bytes:
    """What one rank did."""

    parameters: int  # that it holds
    ranks: int  # that hold the same
    hashed: int = 0
    read: int = 0  # from files, whatever for
    written: int = 0
    peak: dict[str, int] = field(
        default_factory=dict[str, int]
    )  # of memory, when it saved and when it loaded


def io(name: str) -> int:
    """Bytes that this process has read (rchar) or written (wchar)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)[name])


def counted(name: str, act: Callable[[], object]) -> tuple[int, int]:
    """(largest memory, bytes of `name`) of `act`."""
    before = io(name)
    peak = peak_bytes(act)
    return peak, io(name) - before


def run(policy: Path, output: Path, spec: str) -> list[dict[str, Any]]:
    """What each rank found in one case."""
    name, *changes = spec.split(":")
    cfg = ranks.config(**{key: yaml.safe_load(value) for key, value in (c.split("=") for c in changes)})
    layout = parallel.initialize(cfg.parallel, seed=0)
    made = ranks.learner(ranks.Place(cfg, policy, output, layout))
    found = Bytes(sum(p.numel() for p in made.policy.parameters()), layout.data * layout.context)
    if name == "write":
        ranks.iterate(made, cfg, 0)
        folder = output / "written"
    else:
        written, hashing = Checkpoints(output / "written", CheckpointConfig()), FileDigest.of

        seen: list[int] = []  # by several threads

        def noting(path: Path) -> FileDigest:
            seen.append(path.stat().st_size)
            return hashing(path)

        FileDigest.of = noting  # type: ignore[method-assign, assignment]
        assert written.resumable(layout) == 1
        FileDigest.of = hashing  # type: ignore[method-assign]
        found.hashed = sum(seen)
        found.peak["load"], found.read = counted("rchar", lambda: written.load(made, 1))
        folder = output / spec
    checkpoints = Checkpoints(folder, CheckpointConfig())
    found.peak["save"], found.written = counted("wchar", lambda: checkpoints.save(made))
    everyone: list[Any] = [None] * layout.world
    dist.all_gather_object(everyone, vars(found))
    parallel_state.destroy_model_parallel()
    return everyone


def main() -> None:
    """Run each case in its layout."""
    for spec in sys.argv[3:]:
        result = run(Path(sys.argv[1]), Path(sys.argv[2]), spec)
        if dist.get_rank() == 0:
            sys.stdout.write("RESULT " + json.dumps({"case": spec, "ranks": result}) + "\n")
            sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
