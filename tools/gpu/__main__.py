"""One part of `tools/gpu_check.py`, in a process of its own: `python -m tools.gpu PART [--small]`.

Prints what it measured as JSON in the last line. The exit status is 2 if what it saw is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib import import_module
from pathlib import Path

from gigpo_mega.program import run_main
from gigpo_mega.stack import enter

PARTS = {
    "engine": "tools.gpu.engine",
    "layers": "tools.gpu.layers",
    "checkpoint": "tools.gpu.state",
    "repeat": "tools.gpu.state",
    "iteration": "tools.gpu.iteration",
}  # part -> module with the function of that name


def main() -> None:
    """Decide for CUDA or CPU, and run the part."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--small", action="store_true", help="a policy of two narrow layers, in float32")
    given = parser.parse_args()
    if given.part in ("checkpoint", "repeat"):  # both promise the same bits; read when CUDA starts
        os.environ |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
    stack = enter("auto", engine=given.part in ("engine", "iteration"))
    from tools.gpu.setup import Setup  # torch: after options and stack

    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        part = getattr(import_module(PARTS[given.part]), given.part)
        print(json.dumps(part(Setup(stack, given.small, Path(folder)))))


if __name__ == "__main__":
    run_main(main)
