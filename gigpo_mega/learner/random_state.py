"""The states of this process's random number generators as one file that holds nothing but numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save(path: Path) -> None:
    """Write the states of torch's, NumPy's and Python's global generators."""
    numpy: dict[str, Any] = dict(np.random.get_state(legacy=False))
    numpy["state"] = {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]}
    torch.save({"torch": torch.get_rng_state(), "numpy": numpy, "python": random.getstate()}, path)


def load(path: Path) -> None:
    """Restore what `save` wrote."""
    state = torch.load(path, weights_only=True)
    torch.set_rng_state(state["torch"])
    numpy = state["numpy"]
    numpy["state"]["key"] = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy)
    random.setstate(state["python"])
