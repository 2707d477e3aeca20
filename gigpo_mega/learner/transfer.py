"""Arrays of the host on their way to the learner's device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """`values` on `device`, in memory of their own unless it is the CPU; the host does not wait for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    # From pageable memory the host would wait until the GPU has done all that it was given before.
    return tensor.pin_memory().to(device, non_blocking=True)
