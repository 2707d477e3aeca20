"""SGLang's own HTTP server without a GPU: `python -m gigpo_mega.cpu.sglang_server --model-path DIR --port N`.

SGLang starts its scheduler with multiprocessing "spawn". A spawned child re-imports the parent's main module
and only then unpickles its target, so what is installed here at import time is in place in every child before
sglang is imported. For that this must stay a plain module (spawn skips a package's __main__.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gigpo_mega.cpu import stubs

ARGUMENTS = (
    "--device", "cpu",
    "--attention-backend", "torch_native",
    "--sampling-backend", "pytorch",
    "--grammar-backend", "none",
    "--disable-overlap-schedule",
    "--cuda-graph-backend-decode", "disabled",
    "--cuda-graph-backend-prefill", "disabled",
)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run the server until it is told to stop; `arguments` are SGLang's and override ours."""
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    server_args = prepare_server_args([*ARGUMENTS, *arguments])
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ in ("__main__", "__mp_main__"):
    stubs.install()
if __name__ == "__main__":
    main(sys.argv[1:])
