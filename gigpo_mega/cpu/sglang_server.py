"""SGLang's own HTTP server without a GPU: `python -m gigpo_mega.cpu.sglang_server --model-path DIR --port N`.

SGLang starts its scheduler with multiprocessing "spawn". A spawned child re-imports the parent's main module
and only then unpickles its target, so what is installed here at import time is in place in every child before
sglang is imported. For that this must stay a plain module (spawn skips a package's __main__.py).
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from gigpo_mega.cpu import stubs

REGISTRY = "sglang.srt.layers.attention.attention_registry"
ARGUMENTS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--disable-overlap-schedule"),
    *("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled"),
)


class _AttentionHook(importlib.abc.MetaPathFinder):
    """Registers our attention under the name "torch_native" right after SGLang's registry is imported.

    The name stays because SGLang checks it in several places; the hook, because importing the registry here
    would slow down the children that do not need it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                module.register_attention_backend("torch_native")(_padded_attention)

            spec.loader.exec_module = load_and_register
        return spec


def _padded_attention(model_runner: Any) -> Any:
    from gigpo_mega.cpu.attention import PaddedAttention

    return PaddedAttention(model_runner)


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


if __name__ in ("__main__", "__mp_main__") and stubs.install():
    sys.meta_path.insert(0, _AttentionHook())
if __name__ == "__main__":
    main(sys.argv[1:])
