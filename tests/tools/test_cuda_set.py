"""The trial of the CUDA packages: what it runs, and what its record says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools import cuda_set
from tools.cuda_set import Outcome, last_word, parts, record, run

ROOT = Path(__file__).parents[2]


def test_every_part_runs_with_the_packages_of_the_lock(tmp_path: Path) -> None:
    commands = parts(Path("there/bin/python"), tmp_path)
    assert list(commands) == ["imports", "torchrun", "kernels", "tests"]
    assert {command[0] for command in commands.values()} == {"there/bin/python"}
    named = [
        word for command in commands.values() for word in command if word.startswith(("tests/", "configs"))
    ]
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["=== 3 passed, 1 skipped in 2.00s ===", "W: later"], "3 passed, 1 skipped in 2.00s"),
        (
            ["1 failed, 2 passed in 1s", "[rank 1] error: engine.port 1: no"],
            "[rank 1] error: engine.port 1: no",
        ),
        (
            ["[1/1] success 0.0%  gap 4.4e-07  total 4.8s", "warning: no"],
            "[1/1] success 0.0%  gap 4.4e-07  total 4.8s",
        ),
        (["first", " last "], "last"),
        ([], "no output"),
    ],
)
def test_the_line_that_says_how_a_part_ended(lines: list[str], said: str) -> None:
    assert last_word(lines) == said


def test_a_part_fails_by_its_status_or_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    good = run("good", [sys.executable, "-c", "print('done')"], 60)
    assert (good.ok, good.said) == (True, "done")
    assert not run("bad", [sys.executable, "-c", "raise SystemExit(3)"], 60).ok
    assert not run("late", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5).ok
    assert "== late" in capsys.readouterr().out


def test_the_record_keeps_other_parts_of_the_same_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_set, "commit", lambda: "c0ffee")
    file = tmp_path / "record.json"
    for outcome in (Outcome("imports", False, 3, "no"), Outcome("tests", True, 9, "5 passed"),
                    Outcome("imports", True, 3, "239 modules")):  # fmt: skip
        file.write_text(json.dumps(record({"torch": "2.14.1"}, [outcome], file)))
    made = json.loads(file.read_text())
    assert made["versions"] == {"torch": "2.14.1"}
    assert made["lock"] == cuda_set.digest()
    assert made["parts"] == [
        {"name": "imports", "ok": True, "seconds": 3, "said": "239 modules", "commit": "c0ffee"},
        {"name": "tests", "ok": True, "seconds": 9, "said": "5 passed", "commit": "c0ffee"},
    ]
    file.write_text(json.dumps(made | {"lock": "another"}))
    again = record({}, [Outcome("kernels", True, 1, "")], file)["parts"]
    assert isinstance(again, list)
    assert [part["name"] for part in again] == ["kernels"]


@pytest.mark.skipif(not cuda_set.RECORD.exists(), reason="no record")
def test_the_kept_record_is_of_the_present_lock_and_all_parts_ended_well() -> None:
    kept = json.loads(cuda_set.RECORD.read_text())
    assert kept["lock"] == cuda_set.digest()
    assert [part["name"] for part in kept["parts"] if not part["ok"]] == []
    assert kept["versions"]["torch"].partition("+")[0] == "2.14.1"
