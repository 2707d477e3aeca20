"""The programs of environments: what a user can fix is one line and status 2, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envs.base import EnvError
from envs.program import run

ROOT = Path(__file__).parents[2]


def complaint(tmp_path: Path, module: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("module", "arguments", "said"), [
    ("envs.webshop.generate", ["--output", "{file}"], "{file} is a file; choose another folder"),
    ("envs.webshop.generate", ["--output", "{file}/x"], "{file}/x"),
    ("envs.webshop.generate", ["--output", "{new}", "--products", "0"], "generate.products: 0 is not in 1.."),
    ("envs.webshop.generate", ["--output", "{new}", "--kinds", "0"], "generate.kinds: 0 is not in 1..46"),
    ("envs.webshop.generate", ["--output", "{new}", "--values", "0"], "generate.values: 0 is not in 1.."),
    ("envs.webshop.generate", [], "the following arguments are required: --output"),
    ("envs.search.offline", ["{file}"], "{file} is a file; choose another folder"),
    ("envs.search.offline", ["{file}/x"], "{file}/x"),
    ("envs.search.offline", [], "the following arguments are required: folder"),
    ("envs.search.offline", ["a", "b"], "unrecognized arguments: b"),
    ("envs.search.server", ["--corpus", "{new}"], "there is no corpus {new}"),
    ("envs.alfworld.generate", ["--output", "{file}", "--train", "1"], "{file}"),
    ("envs.alfworld.generate", ["--output", "{new}", "--train", "-1"], "--train: -1 is below 0"),
    ("envs.alfworld.generate", ["--output", "{new}"], "no games are asked for"),
])  # fmt: skip
def test_what_a_user_can_fix_is_one_line(
    module: str, arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    paths = {"file": tmp_path / "file", "new": tmp_path / "new"}
    given = [argument.format(**paths) for argument in arguments]
    assert said.format(**paths) in complaint(tmp_path, module, *given)


def test_what_is_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ZeroDivisionError):
        run(lambda: fail(ZeroDivisionError()))
    with pytest.raises(SystemExit) as caught:
        run(lambda: fail(EnvError("two\nlines")))
    assert (caught.value.code, capsys.readouterr().err) == (2, "error: two lines\n")
