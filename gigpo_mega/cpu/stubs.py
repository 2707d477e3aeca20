"""Stand-ins for the GPU-only packages that SGLang imports but never calls on a CPU.

`install()` must run before sglang is imported. A package that is really there always wins, and on a host with
CUDA nothing is installed at all.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
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


def _module_getattr(module: ModuleType) -> Callable[[str], type]:
    return lambda name: _stand_in(module, name, module.__name__)


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in STUBBED and fullname not in ABSENT:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        # matplotlib asks an imported IPython whether it is older than 8.24.
        versions = {"__version__": "0.0.0", "version_info": (99, 0)}
        module.__dict__.update(versions, __getattr__=_module_getattr(module))
        return module

    def exec_module(self, module: ModuleType) -> None:
        del module


def install() -> bool:
    """Let sglang be imported on a host without CUDA; does nothing and returns False with CUDA."""
    if any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        return True
    import torch

    if torch.cuda.is_available():
        return False
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # transformers asks once whether these exist and remembers: let it ask before the stubs can answer.
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    import_utils.is_timm_available()
    sys.meta_path.append(_StubFinder())  # last, so that a real package is found first
    return True
