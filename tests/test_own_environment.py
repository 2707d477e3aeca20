"""The files of docs/environments/your_own.md, in a folder of their own, make an agent that learns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from envs.base import EnvError
from envs.registry import lookup
from tests.programs import run_python

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/environments/your_own.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the page's files."""
    blocks = re.findall(r"^`([\w.]+)`: .*?^```\w+\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == ["corridor.py", "corridor.yaml", "cold.yaml"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.engine
@pytest.mark.learn
def test_the_pages_files_train(folder: Path) -> None:
    for command in re.findall(r"^python (-m .*)$", PAGE.read_text(), re.MULTILINE):
        done = run_python(*command.split(), cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
    output = folder / "runs/corridor"
    before, after = (json.loads((output / f"evaluation_{i:06d}.json").read_text()) for i in (0, 10))
    assert after["success"] > max(0.9, before["success"] + 0.2)
    assert (output / "report.html").stat().st_size > 10_000


def test_an_environment_that_cannot_be_imported_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvError, match=r"environment.name corridor:KIND: .*set PYTHONPATH"):
        lookup("corridor:KIND")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(EnvError, match=r"corridor:NONE: .*no attribute 'NONE'; environments there: KIND$"):
        lookup("corridor:NONE")
    with pytest.raises(EnvError, match=r"corridor:LENGTH is int, not an envs.EnvironmentKind"):
        lookup("corridor:LENGTH")
    assert lookup("corridor:KIND").demonstrate is not None
    for number, (line, said) in enumerate({
        "import randm": r"No module named 'randm' \(.*broken0.py, line 2\); .*or install it",
        "import math; math.cosine": r"no attribute 'cosine' \(.*broken1.py, line 2\); correct it there",
        "from math import cosine": r"cannot import name 'cosine'.*\(.*broken2.py, line 2\); correct it there",
        "{}['kind']": r"KeyError: 'kind' \(.*broken3.py, line 2\); correct it there",
        "KIND = (": r"never closed \(broken4.py, line 2\); correct it there",
    }.items()):  # fmt: skip
        (folder / f"broken{number}.py").write_text(f"KIND = 1\n{line}\n")
        with pytest.raises(EnvError, match=rf"^environment.name broken{number}:KIND: .*{said}") as caught:
            lookup(f"broken{number}:KIND")
        assert "PYTHONPATH" not in str(caught.value)
