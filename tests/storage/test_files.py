"""Folders that appear whole, also when the process dies while it replaces one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gigpo_mega.storage.files import published


def contents(directory: Path) -> str:
    return (directory / "weights").read_text()


def write(directory: Path, text: str) -> None:
    with published(directory, replace=True) as folder:
        (folder / "weights").write_text(text)


def test_a_folder_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    write(tmp_path / "policy", "one")
    write(tmp_path / "policy", "two")
    assert contents(tmp_path / "policy") == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize(("survived", "where"), [(0, "policy"), (1, "policy.old")])
def test_a_process_that_dies_while_replacing_loses_nothing(
    survived: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in the first or in the second of the two renames."""
    write(tmp_path / "policy", "one")
    rename, renames = os.replace, list[Path]()

    def dying(source: Path, target: Path) -> None:
        if len(renames) == survived:
            raise KeyboardInterrupt
        renames.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "policy", "two")
    assert contents(tmp_path / where) == "one"
    monkeypatch.undo()
    write(tmp_path / "policy", "three")
    assert contents(tmp_path / "policy") == "three"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
