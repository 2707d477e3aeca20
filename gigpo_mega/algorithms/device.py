"""The device that advantages are computed on: the host in numpy, or a GPU in Triton, which loads torch."""

from __future__ import annotations

from typing import Literal

from gigpo_mega.errors import ConfigError
from kernels.arrays import triton_device

AdvantageBackend = Literal["auto", "numpy", "triton"]

# Rows from which `auto` uses the GPU. This is an estimate, not measured on a GPU: about 50 launches of 10 us
# and copies of 80 bytes per row at 4 GB/s make 0.5 ms + 0.02 us per row; numpy takes 0.14 us per row
# (docs/benchmarks/bench_advantage.json). They break even near 4,000 rows, but the first iteration also
# compiles the kernels, which takes seconds: below some milliseconds per iteration there is nothing to gain.
GPU_ROWS = 1 << 15


def column_device(backend: AdvantageBackend, rows: int) -> str | None:
    """The torch device for the columns of `rows` rows; None for numpy on the host.

    "cuda", or with backend "triton" in Triton's interpreter "cpu". Raises ConfigError if backend "triton"
    cannot run here.
    """
    if backend == "numpy" or (backend == "auto" and rows < GPU_ROWS):
        return None
    found = triton_device()
    if backend == "triton" and found is None:
        raise ConfigError(
            "advantage.backend triton needs a CUDA device and triton, which this machine does not have; "
            "set it to auto or numpy"
        )
    return None if backend == "auto" and found != "cuda" else found
