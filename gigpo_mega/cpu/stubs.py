"""Stand-ins for the GPU-only packages that SGLang imports but never calls on a CPU.

`install()` must run before sglang is imported. A package that can really be imported always wins, and nothing
is installed where CUDA is and SGLang's kernels are.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

STUBBED = frozenset({
    "IPython",
    "compressed_tensors",
    "gguf",
    "sentencepiece",
    "sgl_kernel",
    "soundfile",
    "torchvision",
    "tvm_ffi",
    "xgrammar",
})

# SGLang has its own fallback for this one and looks for the ImportError.
ABSENT = frozenset({"sgl_kernel.scalar_type"})


class _Names(type):
    """Makes attributes of a stand-in class stand-ins too: sglang's modules read enum members as they load."""

    def __getattr__(cls, name: str) -> type:
        return _stand_in(cls, name, cls.__module__)


class _Missing(metaclass=_Names):
    """A name that can be imported, subclassed or annotated with; calling it says what is missing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        kind = type(self)
        raise NotImplementedError(f"{kind.__module__}.{kind.__name__} is not on this CPU-only host")

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()


def _stand_in(owner: Any, name: str, module: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    missing = _Names(name, (_Missing,), {"__module__": module})
    setattr(owner, name, missing)
    return missing


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self._names and fullname not in ABSENT:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        # matplotlib asks an imported IPython whether it is older than 8.24, and for its shell.
        asked = {"__version__": "0.0.0", "version_info": (99, 0), "get_ipython": lambda: None}
        module.__dict__.update(asked, __getattr__=partial(_stand_in, module, module=spec.name))
        return module

    def exec_module(self, module: ModuleType) -> None:
        del module


def install() -> bool:
    """Let sglang be imported without CUDA or its kernels; does nothing and returns False if both are here."""
    if any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        return True
    import torch

    cuda = torch.cuda.is_available()
    if cuda and find_spec("sgl_kernel"):
        return False
    if not cuda:
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # transformers asks once whether these exist and remembers: let it ask before the stubs can answer.
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    import_utils.is_timm_available()
    try:
        importlib.import_module("sgl_kernel")
    except ImportError:  # it is absent, or built for a GPU and cannot be loaded here
        for name in [name for name in sys.modules if name.partition(".")[0] == "sgl_kernel"]:
            del sys.modules[name]
        sys.meta_path.insert(0, _StubFinder(frozenset({"sgl_kernel"})))
    sys.meta_path.append(_StubFinder(STUBBED))  # last, so that a real package is found first
    return True
