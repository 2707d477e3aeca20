"""Paths as people write them, JSON files, and new folders that appear complete or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.base import EnvError


def expanded(path: str, field: str) -> str:
    """`path` with a leading ~ and environment variables replaced.

    Raises EnvError, which names `field`, for a variable or a person that this machine does not know.
    """
    found = os.path.expanduser(os.path.expandvars(path))
    if (missing := re.search(r"\$([A-Za-z_]\w*|\{\w+\})", found)) or found.startswith("~"):
        unknown = missing[0] if missing else found.partition("/")[0]
        raise EnvError(f"{field} {path!r}: {unknown} is not set on this machine; write the path out")
    return found


def read_json(file: Path, absent: str, damaged: str) -> Any:
    """The JSON value in a UTF-8 file; raises EnvError, with what to do if it is `absent` or `damaged`."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise EnvError(f"{file}: cannot be read ({error.strerror}); {absent}") from None
    except (ValueError, RecursionError) as error:
        raise EnvError(f"{file}: not a complete JSON file ({error}); {damaged}") from None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` if the block ends without an exception.

    If `folder` exists when the block begins, its files of the same relative paths are replaced instead, one
    after another: whoever reads meanwhile, or after a crash, may find old and new ones. If another process
    makes it during the block, that one is kept, provided that its files have the paths and sizes of ours.
    Raises EnvError if they have not, and if `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise EnvError(f"{folder} is a file; choose another folder")
    existed = folder.is_dir()
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if existed:
            _replace_files(partial, folder)
        else:
            _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_files(partial: Path, folder: Path) -> None:
    for path in _sizes(partial):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / path, folder / path)


def _put_in_place(partial: Path, folder: Path) -> None:
    try:
        os.replace(partial, folder)
    except OSError:
        if not folder.is_dir():
            raise
        if _sizes(folder) != _sizes(partial):
            raise EnvError(
                f"{folder} was made meanwhile by another process, with other files than this one would have; "
                "choose another folder for one of them, or remove it and start again"
            ) from None


def _sizes(folder: Path) -> dict[Path, int]:
    """Bytes of every file in `folder`, by its relative path."""
    return {file.relative_to(folder): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
