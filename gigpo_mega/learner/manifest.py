"""Sizes and checksums of a checkpoint's files: what was written is what is read, to the bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STATE = "state.json"  # of a checkpoint: its iteration, the numbers of its model, its files
Files = dict[str, dict[str, Any]]  # path within the checkpoint -> the fields of its `Entry`


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as it was written."""

    size: int  # bytes
    sha256: str


def describe(folder: Path, paths: Iterable[Path]) -> Files:
    """The entries of `paths` in `folder`, several files at a time (hashing leaves Python's lock alone)."""
    files = sorted(paths)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        entries = pool.map(_entry, files)
        return {str(path.relative_to(folder)): asdict(e) for path, e in zip(files, entries, strict=True)}


def damage(folder: Path, files: Files) -> str | None:
    """What is wrong with the first damaged file, or None where all are as they were written."""
    for name, wanted in files.items():  # sizes first: they cost nothing
        try:
            size = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != wanted["size"]:
            return f"{name} has {size} bytes of {wanted['size']}"
    found = describe(folder, [folder / name for name in files])
    for name, wanted in files.items():
        if found[name] != wanted:
            return f"{name} has another SHA-256 than was written"
    return None


def _entry(path: Path) -> Entry:
    with path.open("rb") as file:
        return Entry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
