"""`make check` runs the tests that a change can reach, and no others."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.reach import ALWAYS, ROOT, changed, reached

TEXTS = {
    "pkg/__init__.py": "",
    "pkg/base.py": "",
    "pkg/middle.py": "def late():\n    from pkg.base import x\n",
    "tests/helper.py": "import pkg.middle\n",
    "tests/test_far.py": "from tests.helper import y\nRECIPE = 'small.yaml'\n",
    "tests/test_near.py": "from pkg import base\n",
    "tests/test_other.py": "import os\n",
}


def test_a_change_reaches_its_importers_however_far() -> None:
    assert reached({"pkg/base.py"}, TEXTS) == {"tests/test_far.py", "tests/test_near.py", *ALWAYS}
    assert reached({"tests/helper.py"}, TEXTS) == {"tests/test_far.py", *ALWAYS}
    assert reached({"tests/test_other.py"}, TEXTS) == {"tests/test_other.py", *ALWAYS}
    assert reached({"pkg/__init__.py"}, TEXTS) == {"tests/test_far.py", "tests/test_near.py", *ALWAYS}


def test_a_file_of_another_kind_reaches_who_names_it() -> None:
    assert reached({"configs/small.yaml"}, TEXTS) == {"tests/test_far.py", *ALWAYS}
    assert reached(set(), TEXTS) == set()


def test_new_and_changed_files_are_changes(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init")
    for name in ("kept.py", "edited.py", "gone.py"):
        (tmp_path / name).touch()
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "edited.py").write_text("x")
    (tmp_path / "gone.py").unlink()
    (tmp_path / "new.py").touch()
    assert changed(tmp_path) == {"edited.py", "gone.py", "new.py"}


def test_what_always_runs_exists() -> None:
    assert all((ROOT / path).is_file() for path in ALWAYS)
