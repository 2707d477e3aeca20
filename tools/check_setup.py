"""Check a set-up before anything is installed.

    python tools/check_setup.py               # that what `make setup` installs is an importable CUDA torch
    python3.12 -m tools.check_setup --gpu     # that this machine can have requirements/gpu.lock

The first is a dry run of pip that ignores every configured wheel folder. It takes minutes, and downloads
whole wheels if an index does not serve their metadata separately. torch must be the build of the index with
all its requirements, including its nvidia packages and triton. The second takes a moment, and needs nothing
but the Python that runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gigpo_mega.errors import UserError
from gigpo_mega.stack import Machine

ROOT = Path(__file__).resolve().parent.parent
FILES = ("torch", "cpu", "dev")
TRITON = "3.7.1"
SHOWN = ("torch", "triton", "nvidia-", "cuda-")
PYTHON, GLIBC, CUDA, GIB = (3, 12), (2, 34), (13, 0), 30  # of gpu.lock; GIB are free for packages and pip

Packages = Mapping[str, Mapping[str, Any]]  # metadata by canonical name


def machine_problems(
    python: tuple[int, int],
    architecture: str,
    glibc: tuple[int, int],
    free: float,
    cuda: tuple[int, int] | None,
    compiler: bool,
) -> Iterator[str]:
    """Why a machine cannot have gpu.lock; `free` are GiB, `cuda` is what its driver runs, if it has one.

    `compiler` says whether there is an nvcc, which only a machine that runs something needs.
    """
    if python != PYTHON:
        yield f"Python is {_dotted(python)}, gpu.lock is for {_dotted(PYTHON)} (GPU_PYTHON=...)"
    if architecture != "x86_64":
        yield f"the processor is {architecture}, gpu.lock is for x86_64"
    if glibc < GLIBC:
        yield (
            f"glibc is {_dotted(glibc)}, SGLang's kernels need {_dotted(GLIBC)} (Ubuntu 22.04, Debian 12, "
            "RHEL 9); use a newer system or the Dockerfile"
        )
    if free < GIB:
        yield f"{free:.0f} GiB are free here, the packages and their download take up to {GIB}"
    if cuda is not None and cuda < CUDA:
        yield (
            f"the NVIDIA driver runs CUDA {_dotted(cuda)} at most, the packages are built for "
            f"{_dotted(CUDA)}; update the driver (580 or newer)"
        )
    if cuda is not None and not compiler:
        yield (
            "there is no nvcc, with which SGLang compiles kernels when it first runs; install the toolkit of "
            f"CUDA {_dotted(CUDA)}, set CUDA_HOME if it is not /usr/local/cuda, or use the Dockerfile"
        )


def problems(report: Mapping[str, Any]) -> list[str]:
    """What is wrong with pip's report of the CPU set; empty if nothing is."""
    from packaging.utils import canonicalize_name

    found: Packages = {
        str(canonicalize_name(item["metadata"]["name"])): item["metadata"] for item in report["install"]
    }
    if "torch" not in found:
        return ["torch is not installed at all"]
    torch = found["torch"]
    wrong = _unmet(found, "torch", torch.get("requires_dist", []))
    if "+" in torch["version"]:
        wrong.append(f"torch {torch['version']} is a local build, so this proves nothing")
    if not any(name.startswith("nvidia-") for name in found):
        wrong.append("no nvidia package came with torch")
    if (triton := found.get("triton", {}).get("version", "absent")) != TRITON:
        wrong.append(f"triton is {triton}, not {TRITON}")
    return wrong


def _unmet(found: Packages, package: str, needs: Iterable[str]) -> list[str]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    unmet: list[str] = []
    for need in map(Requirement, needs):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        metadata = found.get(canonicalize_name(need.name))
        if metadata is None or not need.specifier.contains(metadata["version"], prereleases=True):
            unmet.append(f"{package} requires {need}, which the set-up does not bring")
    return unmet


def _dotted(version: tuple[int, int]) -> str:
    return "{}.{}".format(*version)


def dry_run(files: Sequence[str]) -> dict[str, Any]:
    """pip's report of what requirements/`files` would install, with dependencies, on an empty machine."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    environment["PIP_CONFIG_FILE"] = os.devnull
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
                   "--no-cache-dir", "--report", str(target)]  # fmt: skip
        for name in files:
            command += ["-r", str(ROOT / "requirements" / f"{name}.txt")]
        subprocess.run(command, check=True, env=environment)
        return json.loads(target.read_text())


def has_nvcc() -> bool:
    """Whether nvcc is where SGLang looks for it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home is None and shutil.which("nvcc"):
        return True
    return (Path(home or "/usr/local/cuda") / "bin" / "nvcc").exists()


def check_machine() -> int:
    """Print what keeps this machine from gpu.lock, or that it has no GPU yet; returns 1 if anything does."""
    try:
        cuda, note = Machine().ask_driver()[0], ""
    except UserError as error:
        cuda, note = None, f"note: {error}; without one, runs take the CPU stack"
    glibc = platform.libc_ver()[1].split(".") if platform.libc_ver()[0] == "glibc" else ("0", "0")
    free = shutil.disk_usage(ROOT).free / 2**30
    found = (int(glibc[0]), int(glibc[1]))
    machine = sys.version_info[:2], platform.machine(), found, free, cuda
    wrong = list(machine_problems(*machine, compiler=has_nvcc()))
    print("\n".join(wrong or ["this machine can have requirements/gpu.lock", *filter(None, [note])]))
    return bool(wrong)


def main() -> int:
    """Run the check and print what is wrong; returns 1 if anything is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="check this machine for the CUDA packages")
    if parser.parse_args().gpu:
        return check_machine()
    report = dry_run(FILES)
    wrong = problems(report)
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name.startswith(SHOWN):
            print(f"{name}=={version}")
    print("\n".join(wrong) or f"sound: {len(report['install'])} packages")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
