"""The circumstances of a measurement: command, commit, device, load and versions. Needs no torch."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PROVENANCE = "provenance.jsonl"  # in the folder of a run: a row for each of its starts
_CHECKOUT = Path(__file__).resolve().parents[2]


def command() -> str:
    """The command line of this process, with paths from the checkout on, and of others only the name."""
    program, *arguments = sys.argv
    path = Path(program).resolve()
    start = path.name
    if path.is_relative_to(_CHECKOUT) and path.suffix == ".py":
        place = path.relative_to(_CHECKOUT)
        module = ".".join(place.parent.parts)
        start = f"python -m {module}" if place.name == "__main__.py" else f"python {place}"
    folders = re.compile(rf"(^|=)(?:{re.escape(str(_CHECKOUT))}/|/(?:[^/]*/)*(?=[^/]))")
    return " ".join([start, *(shlex.quote(folders.sub(r"\1", word)) for word in arguments)])


def commit() -> str:
    """The commit of the checkout that this file belongs to; "unknown" for an installed wheel."""
    if not (_CHECKOUT / ".git").exists():  # git would find a repository around the virtual environment
        return "unknown"
    asked = ["git", "-C", str(_CHECKOUT), "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def device_name(kind: str = "cpu") -> str:
    """The name of the current GPU if `kind` is "cuda" (imports torch), else the processor and its threads."""
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those of `packages` that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(*packages: str, device: str = "cpu") -> dict[str, Any]:
    """The fields that every record begins with; `device` is "cpu" or "cuda"."""
    return {
        "command": command(),
        "commit": commit(),
        "device": device_name(device),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": versions(*packages),
    }
