"""Emulates the ranks of tools/emulate.py, and some with four layers of true width; a JSON line for each."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

from gigpo_mega.config.load import load_config
from gigpo_mega.planning.shapes import NAMED
from tools.bench.emulation import emulate
from tools.emulate import RANKS, RECIPE, emulated

SHALLOW = {
    "padded": "qwen2.5-7b --batch.packed false",
    "without sequence parallelism": "qwen2.5-7b --parallel.sequence_parallel false",
    "attention recomputed": "qwen2.5-7b --parallel.recompute selective",
    "whole optimizer": "qwen2.5-1.5b --parallel.tensor 2 --parallel.distributed_optimizer false "
    "--parallel.overlap_param_gather false",
    "norms of queries and keys": "qwen3-8b --parallel.tensor 2 --parallel.pipeline 2",
}


def main() -> None:
    """Print them."""
    for name, line in RANKS.items():
        show(name, asdict(emulated(line.split())))
    for name, line in SHALLOW.items():
        model, *arguments = line.split()
        cfg = load_config([f"{RECIPE}.yaml", *arguments], "")
        show(name, asdict(emulate(cfg, replace(NAMED[model], layers=4), rank=0, world=8)))


def show(name: str, found: dict[str, object]) -> None:
    sys.stdout.write(f"RESULT {json.dumps({'name': name} | found)}\n")


if __name__ == "__main__":
    main()
