"""The memory of one rank of a run at true size, emulated without a GPU, beside what is planned for it.

    python tools/emulate.py CONFIG.yaml --world 512 --rank 511 [--model NAME] [--section.field VALUE ...]

runs the learner's own code as that rank, on tensors without data and without the other processes: it is
built, and makes the forward and backward passes of two micro-batches for each stage of the pipeline.
docs/planning.md says what that shows; --record does it for the ranks in the table there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gigpo_mega.arguments import COUNT, number
from gigpo_mega.config.load import load_config
from gigpo_mega.errors import UserError
from gigpo_mega.planning.devices import GIB
from gigpo_mega.planning.shapes import NAMED, find
from gigpo_mega.program import run_main
from gigpo_mega.telemetry.provenance import provenance

if TYPE_CHECKING:
    from tools.bench.emulation import Emulation

RECORD = Path(__file__).resolve().parents[1] / "docs/benchmarks/emulation.json"
RECIPE = "configs/alfworld/qwen2.5-7b"
MIXED = f"{RECIPE}.yaml --world 8 --parallel.tensor 2 --parallel.pipeline 2"
# By name in docs/planning.md: what follows `python tools/emulate.py`.
RANKS = {
    "TP4 x DP2": f"{RECIPE}.yaml --world 8",
    "TP4 x DP2, recomputed": f"{RECIPE}.yaml --world 8 --parallel.recompute full",
    "TP2 x PP2 x CP2, first stage": f"{MIXED} --parallel.context 2",
    "TP2 x PP2 x CP2, last stage": f"{MIXED} --parallel.context 2 --rank 7",
    "TP2 x PP2 x VPP2 x DP2, first stage": f"{MIXED} --parallel.virtual_pipeline 2",
    "TP2 x DP4, adapters": f"{RECIPE}-lora.yaml --world 8",
    "TP4 x DP16": f"{RECIPE}-8nodes.yaml --world 64 --rank 63",
    "TP4 x PP2 x CP2 x DP32, last stage": f"{RECIPE}.yaml --parallel.pipeline 2 --parallel.context 2 "
    "--world 512 --rank 511",
}


def main() -> None:
    """Print what is planned and emulated of a rank, or write the record of all in the table."""
    if _parser().parse_known_args()[0].record:
        head = {"command": "python tools/emulate.py --record", **provenance("torch", "megatron-core")}
        ranks = {name: {"arguments": line, **asdict(emulated(line.split()))} for name, line in RANKS.items()}
        RECORD.write_text(json.dumps(head | {"ranks": ranks}, indent=1) + "\n")
        return
    found = emulated(sys.argv[1:])
    print(f"rank {found.rank} of {found.world}, stage {found.stage}, {found.microbatches} micro-batches")
    print(f"{'GiB':<26}{'planned':>9}{'emulated':>10}")
    for name, size in found.held.items():
        print(f"{name:<26}{found.planned_held[name] / GIB:9.2f}{size / GIB:10.2f}")
    print(f"{'forward and backward pass':<26}{found.planned_peak / GIB:9.2f}{found.peak / GIB:10.2f}")
    print(f"forward passes keep {found.kept / GIB:.2f} of it; the host waits for numbers of the device in: "
          + ", ".join(f"{where} ({count})" for where, count in found.reads.items()))  # fmt: skip


def emulated(argv: Sequence[str]) -> Emulation:
    """The rank that `argv` names; raises UserError for what cannot be emulated."""
    options, rest = _parser().parse_known_args(argv)
    cfg = load_config(rest, "tools/emulate.py")
    if (model := options.model or cfg.model.path) is None:
        raise UserError(f"model.path is not set; give it, or --model with one of {', '.join(NAMED)}")
    if not 0 <= options.rank < options.world:
        raise UserError(f"--rank {options.rank} is not below --world {options.world}; the first rank is 0")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported: all tensors are the CPU's
    from tools.bench.emulation import emulate

    return emulate(cfg, find(model), options.rank, options.world)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--world", type=COUNT, default=8, help="processes of the run, one for each GPU")
    parser.add_argument("--rank", type=number(int, 0), default=0, help="the one that is emulated")
    parser.add_argument("--model", help=f"Hugging Face directory, hub id, or one of {', '.join(NAMED)}")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    return parser


if __name__ == "__main__":
    run_main(main)
