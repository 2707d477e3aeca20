"""Write the locks of the CUDA packages from their .in files: `python tools/lock_gpu.py` (needs uv).

uv resolves for Python 3.12 on x86-64 with glibc 2.34, wherever it runs; the hashes kept are those of wheels
that such a machine can install. gpu.lock also has what requirements/sglang.txt installs without dependencies,
and not `kernels`, whose package of that name would hide ours: it is installed with --no-deps.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

FOLDER = Path(__file__).resolve().parent.parent / "requirements"
PYTHON, GLIBC = (3, 12), 34
HIDES_OURS = "kernels"  # docs/decisions/001-top-level-kernels.md
HEAD = "# By tools/lock_gpu.py for Python {}.{}, x86-64, glibc >= 2.{}: --no-deps --require-hashes\n"


def resolve(*arguments: str) -> dict[str, dict[str, Any]]:
    """The packages that `uv pip compile ARGUMENTS` chooses, by name, as PEP 751 describes them."""
    uv = shutil.which("uv") or sys.exit("lock_gpu needs uv (pip install uv)")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pylock.toml"
        command = [uv, "pip", "compile", "--quiet", "--python-version", "{}.{}".format(*PYTHON),
                   "--python-platform", f"x86_64-manylinux_2_{GLIBC}", "--format", "pylock.toml",
                   "--output-file", str(target), *arguments]  # fmt: skip
        subprocess.run(command, check=True, cwd=FOLDER)
        return {package["name"]: package for package in tomllib.loads(target.read_text())["packages"]}


def supported() -> set[Tag]:
    """The wheel tags of the machine that the locks are for."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    return {*cpython_tags(PYTHON, platforms=platforms), *compatible_tags(PYTHON, "cp312", platforms)}


def entries(packages: Mapping[str, Mapping[str, Any]], tags: set[Tag]) -> Iterator[str]:
    """A requirement with its hashes for each package: of the wheels that fit, or else of its source."""
    for name, package in sorted(packages.items()):
        wheels = [
            wheel["hashes"]["sha256"]
            for wheel in package.get("wheels", [])
            if parse_wheel_filename(wheel.get("name") or wheel["url"].rpartition("/")[2])[3] & tags
        ]
        hashes = wheels or [package["sdist"]["hashes"]["sha256"]]
        pins = [f"{canonicalize_name(name)}=={package['version']}", *(f"--hash=sha256:{h}" for h in hashes)]
        yield " \\\n    ".join(pins) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both locks; returns 0."""
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=raw).parse_args(arguments)
    chosen = resolve("gpu.in")
    chosen.pop(HIDES_OURS)
    packages = resolve("--no-deps", "sglang.txt") | chosen
    write("gpu.lock", packages)
    extras = resolve("gpu-extras.in", "--constraints", "gpu.lock")
    write("gpu-extras.lock", {name: extras[name] for name in extras.keys() - packages.keys()})
    return 0


def write(name: str, packages: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a lock of `packages`."""
    text = HEAD.format(*PYTHON, GLIBC) + "".join(entries(packages, supported()))
    (FOLDER / name).write_text(text)
    print(f"{name}: {len(packages)} packages")


if __name__ == "__main__":
    sys.exit(main())
