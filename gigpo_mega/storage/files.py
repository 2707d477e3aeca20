"""Files and folders that appear whole or not at all, whenever the process or the machine dies."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from gigpo_mega.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` when the block ends well; otherwise `path` stays as it was.

    Raises OSError if the disk refuses.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in place of what `path` held; raises OSError if the disk refuses."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def published(directory: Path, size: int = 0, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes `directory` when the block ends well and vanishes otherwise.

    Raises UserError if `directory` exists (unless it is to be replaced), the disk has no room for `size`
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
        publish(partial, directory)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _refusal(error)
        if reason is None:
            raise
        remedy = "free space or name another directory"
        raise UserError(f"cannot write {directory}: {reason}; {remedy}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, directory: Path) -> None:
    """Flush the folder `partial` to disk and rename it to `directory`, in place of what is there.

    A process that dies between the two renames leaves the folder that was there as `directory`.old.
    """
    for path in [*partial.rglob("*"), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    old = directory.with_name(directory.name + ".old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(directory, old)
    os.replace(partial, directory)
    shutil.rmtree(old, ignore_errors=True)


def _refusal(error: BaseException | None) -> str | None:
    """What the disk said, also if torch answered its error with one of its own."""
    while error is not None:
        if isinstance(error, OSError | SafetensorError):
            return " ".join(str(error).split())[:300]
        error = error.__cause__ or error.__context__
    return None


def mark_latest(output: Path) -> None:
    """Let `runs/latest` point to `output`, if that is a folder in `runs` and nothing else has the name."""
    link = output.absolute().parent / "latest"
    if link.parent.name != "runs" or output.name == link.name or (link.exists() and not link.is_symlink()):
        return
    partial = link.with_name(f"latest.{os.getpid()}.partial")
    with contextlib.suppress(OSError):  # a file system without links
        partial.symlink_to(output.name, target_is_directory=True)
        os.replace(partial, link)
