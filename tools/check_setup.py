"""Prove that the requirement files give an importable CUDA torch where no local CPU wheel is at hand.

    python tools/check_setup.py            # a dry run of pip: downloads, installs nothing (2-3 minutes)

pip resolves requirements/{torch,cpu,dev}.txt as `make setup` does, blind to every configured wheel folder;
then torch must be the index's own build with all it requires, its nvidia packages and triton among them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILES = ("torch", "cpu", "dev")
TRITON = "3.7.1"


def problems(report: Mapping[str, Any]) -> list[str]:
    """What is wrong with pip's installation report; empty where the set-up is sound."""
    found: dict[str, Any] = {
        canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in report["install"]
    }
    if "torch" not in found:
        return ["torch is not installed at all"]
    torch = found["torch"]
    needs = [need for need in map(Requirement, torch.get("requires_dist", [])) if _applies(need)]
    wrong = [f"torch requires {need}, which the set-up does not bring" for need in needs
             if not _fits(need, _version(found, need.name))]
    if "+" in torch["version"]:
        wrong.append(f"torch {torch['version']} is a local build, so this proves nothing")
    if not any(name.startswith("nvidia-") for name in found):
        wrong.append("no nvidia package came with torch")
    if _version(found, "triton") != TRITON:
        wrong.append(f"triton is {_version(found, 'triton') or 'absent'}, not {TRITON}")
    return wrong


def _applies(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": ""})


def _fits(need: Requirement, version: str | None) -> bool:
    return version is not None and need.specifier.contains(version, prereleases=True)


def _version(found: Mapping[str, Any], name: str) -> str | None:
    metadata = found.get(canonicalize_name(name))
    return metadata["version"] if metadata else None


def dry_run() -> dict[str, Any]:
    """pip's report of what `make setup` would install with dependencies on a machine that has nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    environment["PIP_CONFIG_FILE"] = os.devnull
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
                   "--report", str(target)]
        for name in FILES:
            command += ["-r", str(ROOT / "requirements" / f"{name}.txt")]
        subprocess.run(command, check=True, env=environment)
        return json.loads(target.read_text())


def main() -> int:
    """Run the check, print the verdict; status 1 where the set-up is broken."""
    report = dry_run()
    wrong = problems(report)
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name.startswith(("torch", "triton", "nvidia-", "cuda-")):
            print(f"{name}=={version}")
    print("\n".join(wrong) or f"sound: {len(report['install'])} packages")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
