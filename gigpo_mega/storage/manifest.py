"""Sizes and checksums of a checkpoint's files: what was written is what is read, to the bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

STATE = "state.json"  # of a checkpoint: its iteration, the numbers of its model, its files
LEARNER = "learner"  # of a checkpoint: the folder of its sharded state
Files = dict[str, dict[str, Any]]  # path within the checkpoint -> the fields of its `FileDigest`


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file as it was written."""

    size: int  # bytes
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file at `path`, which is read whole."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def describe(folder: Path, paths: Iterable[Path]) -> Files:
    """The entries of `paths` in `folder`, several files at a time (hashing leaves Python's lock alone)."""
    files = sorted(paths)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        entries = pool.map(FileDigest.of, files)
        return {str(path.relative_to(folder)): asdict(e) for path, e in zip(files, entries, strict=True)}


def share(files: Files, ranks: int, rank: int) -> Files:
    """The part of `files` that `rank` looks at: about as many bytes as each of the others."""
    by_size = sorted(files, key=lambda name: files[name]["size"], reverse=True)
    return {name: files[name] for name in by_size[rank::ranks]}


def damage(folder: Path, files: Files) -> str | None:
    """What is wrong with one of `files`, or None if all are as they were written; OSError if not readable."""
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
