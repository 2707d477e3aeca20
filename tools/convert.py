"""Hugging Face directories <-> megatron-core checkpoints, bit for bit, one tensor in memory at a time.

    python tools/convert.py import --hf DIR --out DIR --tensor 2 --pipeline 2
    python tools/convert.py export --checkpoint DIR --hf-config DIR --out DIR
    python tools/convert.py verify --hf DIR --checkpoint DIR      # all bits, then logits

A checkpoint is what `import` wrote, which `model.path` may name, or a run's checkpoints/iteration_*. Needs
neither a GPU nor Transformer Engine nor torchrun. What a layout means for the files, and measured cases:
docs/conversion.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gigpo_mega.errors import UserError, run_main
from gigpo_mega.weights import convert, verify
from gigpo_mega.weights.sharded import Grid

LARGEST_GAP = 1e-5  # of the logits, relative to the largest one


def main() -> None:
    """Read the options and convert."""
    options = _parser().parse_args()
    if options.command == "import":
        grid = Grid(options.tensor, options.pipeline, options.virtual_pipeline)
        convert.import_hf(options.hf, options.out, grid)
        print(options.out)
    elif options.command == "export":
        convert.export_hf(options.checkpoint, options.hf_config, options.out)
        print(options.out)
    else:
        _verify(options.hf, options.checkpoint, logits=not options.bits_only)


def _verify(hf: Path, checkpoint: Path, logits: bool) -> None:
    if found := verify.different(hf, checkpoint):
        listed = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
        raise UserError(f"{checkpoint} is not {hf}: {len(found)} tensors differ: {listed}")
    print("bits: every tensor is equal")
    if not logits:
        return
    gap = verify.logits_gap(hf, checkpoint)
    print(f"logits: {gap.max:.3g} at most from transformers, {gap.biases_last:.3g} where it adds biases last "
          f"(float32, {gap.tokens} random tokens, largest logit {gap.scale:.3g})")  # fmt: skip
    if not gap.max <= LARGEST_GAP * gap.scale:
        raise UserError(f"{checkpoint} computes other logits than {hf}: {gap.max:.2g} apart")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    new = "directory to write; must not exist"

    reader = commands.add_parser("import", help="Hugging Face directory -> checkpoint")
    reader.add_argument("--hf", type=Path, required=True, help="Hugging Face directory")
    reader.add_argument("--out", type=Path, required=True, help=new)
    for size in ("tensor", "pipeline", "virtual-pipeline"):
        reader.add_argument(f"--{size}", type=_positive, default=1, help=f"cut the files for parallel.{size}")

    writer = commands.add_parser("export", help="checkpoint -> Hugging Face directory")
    writer.add_argument("--checkpoint", type=Path, required=True, help="an import, or a run's iteration")
    writer.add_argument("--hf-config", type=Path, required=True, help="directory with config and tokenizer")
    writer.add_argument("--out", type=Path, required=True, help=new)

    checker = commands.add_parser("verify", help="compare a Hugging Face directory with a checkpoint")
    checker.add_argument("--hf", type=Path, required=True, help="Hugging Face directory")
    checker.add_argument("--checkpoint", type=Path, required=True, help="an import, or a run's iteration")
    checker.add_argument("--bits-only", action="store_true",
                         help="no logits, which need memory for the model in float32")  # fmt: skip
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


if __name__ == "__main__":
    run_main(main)
