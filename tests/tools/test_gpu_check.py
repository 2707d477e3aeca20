"""tools/gpu_check.py: each part has its own time, its own fate and its own line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tools import gpu_check
from tools.gpu_check import Part, parts, run


def python(program: str, budget: float = 20.0) -> gpu_check.Outcome:
    return run(Part("part", (sys.executable, "-S", "-c", program), budget))


def test_the_last_line_is_the_result() -> None:
    done = python("print('table'); print('{\"tokens\": 5}')")
    assert (done.status, done.result) == ("ok", {"tokens": 5})
    assert python("print('3 passed, 1 skipped in 2s'); print('[1]')").message == "3 passed, 1 skipped in 2s"


def test_a_failure_shows_its_last_line() -> None:
    failed = python("import sys; print('half done'); sys.exit('no luck')")
    assert (failed.status, failed.message) == ("failed", "status 1: no luck")


def test_what_is_missing_is_named() -> None:
    assert python("import nowhere_to_be_found").message == "nowhere_to_be_found is not installed"
    told = "import sys; sys.exit('error: the learner needs megatron, which is not installed')"
    assert (python(told).status, python(told).message) == ("missing", "megatron is not installed")


def test_a_part_that_hangs_is_ended_with_its_children() -> None:
    begin = time.monotonic()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(300)'])"
    late = python(child, budget=1.0)
    assert (late.status, late.message) == ("timeout", "not done after 1 s")
    assert time.monotonic() - begin < 30


def test_all_parts_take_less_than_ten_minutes() -> None:
    assert sum(part.budget for part in parts(Path("out"), quick=True)) <= 600 - 30
    [tests] = [part for part in parts(Path("out"), quick=True) if part.name == "tests"]
    assert any(name.endswith("test_policy_loss.py") for name in tests.command)


def test_record_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fates = {"tests": "raise SystemExit('1 failed')", "kernels": "print('{}')", "learner": "import absent"}
    given = [Part(name, (sys.executable, "-S", "-c", fate), 20.0) for name, fate in fates.items()]
    monkeypatch.setattr(gpu_check, "parts", lambda output, quick: given)
    monkeypatch.setattr(gpu_check, "machine", lambda: {"device": "Fake GPU 1", "kind": "cuda"})
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--output", str(tmp_path)])
    assert gpu_check.main() == 1
    record = json.loads((tmp_path / "gpu_check_fake_gpu_1.json").read_text())
    assert [part["status"] for part in record["parts"]] == ["failed", "ok", "missing"]
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        ["failed", "tests"], ["ok", "kernels"], ["missing", "learner"]
    ]  # fmt: skip
