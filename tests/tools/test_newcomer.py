"""tools/newcomer.py types what the pages say, and interrupts what it has seen enough of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.newcomer import ROOT, WAYS, typed

PAGES = "\n".join((ROOT / page).read_text() for page in ("README.md", "docs/get_started.md"))


def test_its_commands_are_those_of_the_pages() -> None:
    said = " ".join(PAGES.replace("\\\n", " ").split())
    assert [line for commands in WAYS.values() for _, line in commands if line not in said] == []


def test_a_command_is_timed_in_its_folder_and_may_be_interrupted(tmp_path: Path) -> None:
    assert typed("touch here", tmp_path, tmp_path)["command"] == "touch here"
    assert (tmp_path / "here").exists()
    assert 0.5 <= typed("sleep 0.5", tmp_path, tmp_path)["seconds"] < 30
    assert typed("sleep 60", tmp_path, tmp_path, until=lambda: True)["seconds"] < 30
    with pytest.raises(subprocess.CalledProcessError):
        typed("false", tmp_path, tmp_path)
