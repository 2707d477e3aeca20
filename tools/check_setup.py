"""Prove that the requirement files resolve, to an importable CUDA torch, where no local CPU wheel is at hand.

    python tools/check_setup.py                     # what `make setup` installs
    python3.12 tools/check_setup.py --gpu           # requirements/gpu.txt, for the Python that runs this

A dry run of pip, blind to every configured wheel folder, installs nothing. It takes minutes, and downloads
whole wheels where an index does not serve their metadata apart. torch must be the index's own build with all
it requires, its nvidia packages and triton among them. On a GPU machine it must be what SGLang asks for,
and Transformer Engine's core must be for the same CUDA, with all that its torch half asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILES = ("torch", "cpu", "dev")
TRITON = "3.7.1"
SHOWN = ("torch", "triton", "nvidia-", "cuda-", "sglang", "transformer", "megatron", "ray")
# Of transformer-engine-torch 2.20.2, which only pip on a machine with CUDA can build and ask (its PKG-INFO).
ENGINE_NEEDS = ("torch>=2.1", "einops", "onnxscript", "onnx", "packaging", "pydantic", "nvdlfw-inspect",
                "nvidia-cudnn-frontend>=1.29.0")  # fmt: skip

Packages = Mapping[str, Mapping[str, Any]]  # metadata by canonical name


def _packages(report: Mapping[str, Any]) -> Packages:
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in report["install"]}


def problems(report: Mapping[str, Any]) -> list[str]:
    """What is wrong with pip's report of the CPU set; empty where the set-up is sound."""
    found = _packages(report)
    wrong = _torch_problems(found)
    if "torch" in found and _version(found, "triton") != TRITON:
        wrong.append(f"triton is {_version(found, 'triton') or 'absent'}, not {TRITON}")
    return wrong


def gpu_problems(report: Mapping[str, Any]) -> list[str]:
    """What is wrong with pip's report of the GPU set; empty where the set-up is sound."""
    found = _packages(report)
    wrong = _torch_problems(found)
    if "torch" not in found:
        return wrong
    for package in ("sglang", "megatron-core", "ray"):
        wrong += _unmet(found, package, found.get(package, {}).get("requires_dist", []))
        if package not in found:
            wrong.append(f"{package} is absent")
    wrong += _unmet(found, "transformer-engine-torch", ENGINE_NEEDS)
    cuda = {name.rpartition("-cu")[2] for name in found if name.startswith("nvidia-nccl-cu")}
    core = {name.rpartition("-cu")[2] for name in found if name.startswith("transformer-engine-cu")}
    if core != cuda:
        wrong.append(f"transformer-engine is for CUDA {sorted(core)}, torch for {sorted(cuda)}")
    return wrong


def _torch_problems(found: Packages) -> list[str]:
    if "torch" not in found:
        return ["torch is not installed at all"]
    torch = found["torch"]
    wrong = _unmet(found, "torch", torch.get("requires_dist", []))
    if "+" in torch["version"]:
        wrong.append(f"torch {torch['version']} is a local build, so this proves nothing")
    if not any(name.startswith("nvidia-") for name in found):
        wrong.append("no nvidia package came with torch")
    return wrong


def _unmet(found: Packages, package: str, needs: Iterable[str]) -> list[str]:
    return [f"{package} requires {need}, which the set-up does not bring" for need in map(Requirement, needs)
            if _applies(need) and not _fits(need, _version(found, need.name))]  # fmt: skip


def _applies(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": ""})


def _fits(need: Requirement, version: str | None) -> bool:
    return version is not None and need.specifier.contains(version, prereleases=True)


def _version(found: Packages, name: str) -> str | None:
    metadata = found.get(canonicalize_name(name))
    return metadata["version"] if metadata else None


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


def main() -> int:
    """Run the check, print the verdict; status 1 where the set-up is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="the set of a machine with CUDA")
    gpu = parser.parse_args().gpu
    report = dry_run(["gpu"] if gpu else FILES)
    wrong = gpu_problems(report) if gpu else problems(report)
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name.startswith(SHOWN):
            print(f"{name}=={version}")
    print("\n".join(wrong) or f"sound: {len(report['install'])} packages")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
