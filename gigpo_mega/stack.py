"""The one decision of what learner and engine compute with: CUDA for both, or the CPU for both.

Made once in a process, before torch is imported, by what can really run: a driver alone is no CUDA stack if
torch is a CPU build or SGLang's kernels are missing. Whatever else depends on a GPU follows from it, in this
process and its children: without the CUDA stack the GPUs are hidden, so that torch.cuda.is_available() is
False everywhere.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from gigpo_mega.errors import UserError
from gigpo_mega.launch import rank_and_world


@dataclass(frozen=True, slots=True)
class Stack:
    """What learner and engine of this process compute with, and why."""

    name: Literal["cpu", "cuda"]
    reason: str
    gpus: int = 0  # visible to this process

    @property
    def cuda(self) -> bool:
        """Whether it is CUDA."""
        return self.name == "cuda"


class Machine:
    """What this machine and its installation have; reads files and asks the driver, imports nothing."""

    def hides_gpus(self) -> bool:
        """Whether CUDA_VISIBLE_DEVICES hides every GPU."""
        return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")

    def has_driver(self) -> bool:
        """Whether NVIDIA's driver library can be loaded; does not initialize it."""
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return False
        return True

    def has_amd_gpu(self) -> bool:
        """Whether AMD's driver is here."""
        return Path("/dev/kfd").exists()

    def torch_cuda(self) -> str | None:
        """The version of CUDA that torch was built for; None for a build without."""
        spec = find_spec("torch")
        file = Path(spec.origin or "").with_name("version.py") if spec else Path()
        found = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)", file.read_text(), re.M) if file.is_file() else None
        return found[1] if found else None

    def has_kernels(self) -> bool:
        """Whether SGLang's CUDA kernels are installed."""
        return find_spec("sgl_kernel") is not None

    def ask_driver(self) -> tuple[tuple[int, int], int]:
        """The newest (major, minor) CUDA version that the driver runs, and the number of visible GPUs.

        Initializes the driver, which reads CUDA_VISIBLE_DEVICES then and never again in this process. Raises
        UserError if the driver does not work.
        """
        version, count = ctypes.c_int(), ctypes.c_int()
        try:
            driver = ctypes.CDLL("libcuda.so.1")
            calls = {
                "cuInit": (driver.cuInit, 0),
                "cuDriverGetVersion": (driver.cuDriverGetVersion, ctypes.byref(version)),
                "cuDeviceGetCount": (driver.cuDeviceGetCount, ctypes.byref(count)),
            }
        except (OSError, AttributeError) as error:
            raise UserError(f"the NVIDIA driver cannot be used: {error}") from None
        for name, (call, argument) in calls.items():
            if status := call(argument):
                raise UserError(f"the NVIDIA driver does not work: {name} answers {status}")
        return (version.value // 1000, version.value % 1000 // 10), count.value


def decide(
    wanted: Literal["auto", "cpu", "cuda"] = "auto", *, engine: bool = True, machine: Machine | None = None
) -> Stack:
    """The stack of a process that launches an SGLang server if `engine`; `wanted` forces it.

    Raises UserError, with the reason, if CUDA is wanted and cannot run.
    """
    if wanted == "cpu":
        return Stack("cpu", "as the option stack says")
    try:
        return _cuda(machine or Machine(), engine)
    except UserError as obstacle:
        if wanted == "cuda":
            raise UserError(f"stack cuda cannot run here: {obstacle}; set it to cpu or auto") from None
        return Stack("cpu", str(obstacle))


def enter(wanted: Literal["auto", "cpu", "cuda"], *, engine: bool) -> Stack:
    """Decide for this process and its children, and say so on the leader's stderr; before torch is imported.

    Raises UserError as `decide` does.
    """
    stack = decide(wanted, engine=engine)
    if not stack.cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    rank, _ = rank_and_world()
    if rank == 0:
        sys.stderr.write(f"stack: {stack.name}, {stack.reason}\n")
    return stack


def _cuda(machine: Machine, engine: bool) -> Stack:
    """The CUDA stack; raises UserError with what is missing, the driver's own answer last.

    A driver that has been initialized cannot be hidden from torch any more, so it is asked only if nothing
    else decides for the CPU.
    """
    if machine.hides_gpus():
        raise UserError("CUDA_VISIBLE_DEVICES hides every GPU")
    if not machine.has_driver():
        amd = ", and AMD GPUs are not supported" if machine.has_amd_gpu() else ""
        raise UserError(f"there is no NVIDIA driver (libcuda.so.1){amd}")
    built = machine.torch_cuda()
    if built is None:
        raise UserError("there is an NVIDIA driver, but torch is a CPU build (make setup-gpu)")
    if engine and not machine.has_kernels():
        raise UserError("there is an NVIDIA driver, but not SGLang's sgl_kernel package (make setup-gpu)")
    supported, gpus = machine.ask_driver()
    if supported[0] < int(built.partition(".")[0]):
        newest = ".".join(map(str, supported))
        raise UserError(f"torch is built for CUDA {built}, and the NVIDIA driver runs CUDA {newest} at most")
    if gpus == 0:
        raise UserError("the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES, nvidia-smi)")
    return Stack("cuda", f"{gpus} GPU(s), torch for CUDA {built}", gpus)
