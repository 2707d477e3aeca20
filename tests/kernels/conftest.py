"""Kernels run on the GPU if there is one, else in Triton's interpreter (tests/conftest.py)."""

from __future__ import annotations

import pytest
import torch
from triton import knobs

from tests.kernels import interpreter

if knobs.runtime.interpret:
    interpreter.patch()


@pytest.fixture
def device() -> torch.device:
    """The device of a kernel test's tensors."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
