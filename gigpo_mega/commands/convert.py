"""Convert Hugging Face directories to megatron-core checkpoints and back, bit for bit.

    gigpo-mega convert import --hf DIR --out DIR --tensor 2 --pipeline 2
    gigpo-mega convert export --checkpoint DIR --hf-config DIR --out DIR
    gigpo-mega convert verify --hf DIR --checkpoint DIR      # all bits, then logits

A checkpoint is what `import` wrote, which `model.path` may name, or checkpoints/iteration_* of a run. One
tensor is in memory at a time. Needs no GPU, Transformer Engine or torchrun. docs/conversion.md says what a
layout means for the files, and lists measured cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gigpo_mega import hub
from gigpo_mega.arguments import COUNT
from gigpo_mega.errors import UserError
from gigpo_mega.hf_config import HFConfig

LARGEST_GAP = 1e-5  # of the logits, relative to the largest one


def main(argv: Sequence[str] | None = None) -> None:
    """Write the output directory and print its path, or print the result of the comparison.

    Raises UserError if an input is damaged, an output exists, or `verify` finds a difference.
    """
    options = _parser().parse_args(argv)
    from gigpo_mega.weights import convert
    from gigpo_mega.weights.sharded import Grid

    if options.command == "verify":
        verify(_directory(options.hf, "--hf"), options.checkpoint, logits=not options.bits_only)
        return
    if options.command == "import":
        grid = Grid(options.tensor, options.pipeline, options.virtual_pipeline)
        convert.import_hf(_directory(options.hf, "--hf"), options.out, grid)
    else:
        config = _directory(options.hf_config, "--hf-config", weights=False)
        convert.export_hf(options.checkpoint, config, options.out)
    print(options.out)


def _directory(model: Path, option: str, weights: bool = True) -> Path:
    """The Hugging Face directory that `option` names; raises UserError that says so if it is none."""
    try:
        found = hub.directory(model, weights)
        HFConfig(found / "config.json")
    except UserError as error:  # in a run it is model.path that names one
        raise UserError(f"{option}: {str(error).removeprefix('model.path: ')}") from None
    return found


def verify(hf: Path, checkpoint: Path, logits: bool) -> None:
    """Raise UserError unless all bits of two directories are equal and, if asked, their logits agree."""
    from gigpo_mega.weights import verify

    if found := verify.different(hf, checkpoint):
        listed = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
        raise UserError(f"{checkpoint} is not {hf}: {len(found)} tensors differ: {listed}")
    print("bits: every tensor is equal")
    if not logits:
        return
    gap = verify.logits_gap(hf, checkpoint)
    print(
        f"logits: largest difference from transformers {gap.max:.3g}, with its biases added last "
        f"{gap.biases_last:.3g} (float32, {gap.tokens} random tokens, largest logit {gap.scale:.3g})"
    )
    if not gap.max <= LARGEST_GAP * gap.scale:
        raise UserError(
            f"logits of {checkpoint} and {hf} differ by {gap.max:.2g}; the limit is {LARGEST_GAP:g} of the "
            f"largest logit, {gap.scale:.3g}"
        )


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="gigpo-mega convert", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    new = "directory to write; must not exist"
    source = "Hugging Face directory, or the id of a model on the hub"

    reader = commands.add_parser("import", help="Hugging Face directory -> checkpoint")
    reader.add_argument("--hf", type=Path, required=True, help=source)
    reader.add_argument("--out", type=Path, required=True, help=new)
    for size in ("tensor", "pipeline", "virtual-pipeline"):
        reader.add_argument(f"--{size}", type=COUNT, default=1, help=f"cut the files for parallel.{size}")

    writer = commands.add_parser("export", help="checkpoint -> Hugging Face directory")
    writer.add_argument("--checkpoint", type=Path, required=True, help="an import, or an iteration of a run")
    writer.add_argument("--hf-config", type=Path, required=True, help=f"{source}, with config and tokenizer")
    writer.add_argument("--out", type=Path, required=True, help=new)

    checker = commands.add_parser("verify", help="compare a Hugging Face directory with a checkpoint")
    checker.add_argument("--hf", type=Path, required=True, help=source)
    checker.add_argument("--checkpoint", type=Path, required=True, help="an import, or an iteration of a run")
    checker.add_argument("--bits-only", action="store_true",
                         help="skip logits, which need memory for the model in float32")  # fmt: skip
    return parser
