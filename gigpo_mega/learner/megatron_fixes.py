"""What megatron-core gets wrong for us, corrected in one place and applied once.

Each fix names the versions of megatron-core that it is for; another version is used as it is, with a warning.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet
from torch import Tensor

UPSTREAM = "https://github.com/NVIDIA/Megatron-LM"
# How megatron-core calls torch; not actionable for our users.
_WARNINGS = (
    r"`torch\.distributed\.\w+` is deprecated",
    r"`load_state_dict` is deprecated",
    r"Please use DTensor instead and we are deprecating ShardedTensor",
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    r"When using async grad allreduce it is recommended to set .* CUDA_DEVICE_MAX_CONNECTIONS",
)


@dataclass(frozen=True, slots=True)
class Fix:
    """One correction of megatron-core."""

    apply: Callable[[], None]
    versions: SpecifierSet  # of megatron-core that need it
    upstream: str  # where the fault is, or was corrected


def apply() -> None:
    """Apply every fix that the installed megatron-core needs; once per process is enough."""
    from megatron.core.package_info import __version__

    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for fix in FIXES:
        if fix.versions.contains(__version__, prereleases=True):
            fix.apply()
        else:
            name = fix.apply.__name__
            unfixed = f"megatron-core {__version__} is used without {name} ({fix.upstream})"
            warnings.warn(unfixed, stacklevel=2)


def fold_frozen_gradients() -> None:
    """Let the backward pass of a frozen linear layer be one product of matrices.

    megatron-core multiplies a gradient [s, 1, out] whose middle stride is not `out` with the weight: torch
    takes that for s products of one row, in bfloat16 on a CPU with s copies of the weight.
    """
    from megatron.core.tensor_parallel.layers import LinearWithFrozenWeight

    patched: Any = LinearWithFrozenWeight
    original = patched.backward

    @functools.wraps(original)
    def folded(ctx: Any, gradient: Tensor) -> Any:
        return original(ctx, gradient.flatten(0, 1).unflatten(0, gradient.shape[:2]))

    patched.backward = staticmethod(folded)


# 0.16.1 is the newest release for Python 3.11 and the one that the tests prove these with.
_SOURCE = f"{UPSTREAM}/blob/core_v0.16.1/megatron/core"
_TESTED = SpecifierSet(">=0.16.1,<0.17")
FIXES = (Fix(fold_frozen_gradients, _TESTED, f"{_SOURCE}/tensor_parallel/layers.py"),)
