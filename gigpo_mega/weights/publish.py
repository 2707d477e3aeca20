"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gigpo_mega.errors import UserError


@contextmanager
def published(directory: Path, size: int = 0, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes `directory` when the block ends well and vanishes otherwise.

    Raises UserError where `directory` exists (unless it is to be replaced), the disk has no room for `size`
    bytes, or writing fails.
    """
    if directory.exists() and not replace:
        raise UserError(f"{directory} exists already; remove it or name another directory")
    partial = directory.with_name(directory.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if (free := shutil.disk_usage(partial).free) < size:
            raise OSError(f"{size / 2**20:.1f} MiB are needed, {free / 2**20:.1f} MiB are free")
        yield partial
        _sync(partial)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(partial, directory)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _refusal(error)
        if reason is None:
            raise
        remedy = "free space or name another directory"
        raise UserError(f"cannot write {directory}: {reason}; {remedy}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refusal(error: BaseException | None) -> str | None:
    """What the disk said, also where torch answered its error with one of its own."""
    while error is not None:
        if isinstance(error, OSError | SafetensorError):
            return " ".join(str(error).split())[:300]
        error = error.__cause__ or error.__context__
    return None


def _sync(folder: Path) -> None:
    """Flush the files to disk, so that the rename publishes nothing half written."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
