"""Kernels run on the GPU where there is one and in Triton's interpreter elsewhere (tests/conftest.py)."""

from __future__ import annotations

import pytest
import torch
from triton import knobs

from tests.kernels import interpreter

if knobs.runtime.interpret:
    interpreter.mend()


@pytest.fixture
def device() -> torch.device:
    """Where tensors of a kernel test live."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
