"""Folders that appear complete or not at all, also when two processes make the same one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs.base import EnvError
from envs.files import new_folder

ROOT = Path(__file__).parents[2]
WRITE = """
import sys
from pathlib import Path
from envs.files import new_folder

with new_folder(Path(sys.argv[1])) as folder:
    (folder / "deep").mkdir()
    (folder / "deep/file").write_text(sys.argv[2])
"""
GENERATE = """
import sys
from envs.alfworld.sources import task_source

print("ready", flush=True)
sys.stdin.readline()
source = task_source(sys.argv[1], generate={"games": {"train": 3}, "receptacles": 6, "objects": 6})
print(len(source.tasks("train")))
"""


def another_process_writes(folder: Path, text: str) -> None:
    subprocess.run([sys.executable, "-c", WRITE, str(folder), text], cwd=ROOT, check=True)


def write(folder: Path, text: str, meanwhile: str = "") -> None:
    """Write `text` to deep/file, and have another process write `meanwhile` to the same folder before."""
    with new_folder(folder) as partial:
        (partial / "deep").mkdir()
        (partial / "deep/file").write_text(text)
        if meanwhile:
            another_process_writes(folder, meanwhile)


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_who_makes_the_same_folder_second_keeps_the_first(tmp_path: Path) -> None:
    write(tmp_path / "games", "mine", meanwhile="same")
    assert files(tmp_path) == {"games/deep/file": "same"}


def test_a_folder_made_meanwhile_with_other_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"/games was made meanwhile .*; choose another folder"):
        write(tmp_path / "games", "mine", meanwhile="another")
    assert files(tmp_path) == {"games/deep/file": "another"}


def test_files_of_a_folder_that_was_there_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "games"
    (folder / "deep").mkdir(parents=True)
    for name in ("deep/file", "deep/other", "own"):
        (folder / name).write_text("old")
    write(folder, "mine", meanwhile="another")
    assert files(tmp_path) == {"games/deep/file": "mine", "games/deep/other": "old", "games/own": "old"}


def test_a_file_and_a_failure_leave_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(EnvError, match="/file is a file; choose another folder"):
        write(tmp_path / "file", "mine")
    with pytest.raises(ValueError, match="null byte"):
        write(tmp_path / "games", "mine", meanwhile="\0")  # is no argument of a process
    assert files(tmp_path) == {"file": "old"}


def test_two_first_runs_that_generate_the_same_games_both_find_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GENERATE, str(tmp_path / "games")]
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(2)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    answers = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], answers
    assert [found.strip() for found, _ in answers] == ["3", "3"]
    assert os.listdir(tmp_path) == ["games"]
