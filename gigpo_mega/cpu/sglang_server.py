"""SGLang's own HTTP server without a GPU: `python -m gigpo_mega.cpu.sglang_server --model-path DIR --port N`.

Scheduler and detokenizer are forked from this process, which has imported all that they need: SGLang would
spawn them, and each would import torch and sglang again, some eight seconds of CPU, for the sake of CUDA
contexts that are not here. What SGLang starts elsewhere it starts as ever. A spawned process re-imports this
module before anything else, which installs the stubs before sglang is imported; for that it must stay a plain
module (spawn skips a package's __main__.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkContext
from typing import Any

from gigpo_mega.cpu import stubs

ARGUMENTS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--disable-overlap-schedule"),
    *("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled"),
)


class _Forks(ForkContext):
    """A start method that stays when SGLang asks for another."""

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Not here."""


def main(arguments: Sequence[str]) -> None:
    """Run the server until it is stopped; `arguments` are SGLang's and override ours."""
    from sglang.srt.entrypoints import engine
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    engine.mp = _Forks()
    server_args = prepare_server_args([*ARGUMENTS, *arguments])
    try:
        launch_server(server_args, run_scheduler_process_func=_scheduler)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def _scheduler(*args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler process, with our attention under the name that SGLang has for the CPU."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.managers.scheduler import run_scheduler_process

    from gigpo_mega.cpu.attention import PaddedAttention

    register_attention_backend("torch_native")(PaddedAttention)
    run_scheduler_process(*args, **kwargs)


if __name__ in ("__main__", "__mp_main__"):
    stubs.install()
if __name__ == "__main__":
    main(sys.argv[1:])
