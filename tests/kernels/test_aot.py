"""Every kernel compiled as production launches it, for sm_80, sm_90 and sm_100, against the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools import aot_kernels
from tools.bench import aot
from tools.bench.aot import RECORD, Resources, complaints, read_record, write_record

pytestmark = pytest.mark.aot
HINT = "python tools/aot_kernels.py --record"


@pytest.fixture(scope="module")
def compiled() -> subprocess.CompletedProcess[str]:
    """One run of the tool over all operations, outside of the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, aot_kernels.__file__, "--json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def record() -> list[Resources]:
    return read_record(RECORD)


def test_nothing_spills_and_nothing_grew(compiled: subprocess.CompletedProcess[str]) -> None:
    assert compiled.returncode == 0, compiled.stdout[-3000:] + compiled.stderr[-3000:]
    result: dict[str, Any] = json.loads(compiled.stdout.splitlines()[-1])
    found = [Resources(**row) for row in result["kernels"]]
    assert {r.op for r in found} == set(aot.operations())
    variants = [v for op in aot.operations() for v in aot.variants(op)]
    assert len(found) == sum(len(variant.targets) for variant in variants)
    assert not [r.key for r in found if r.sm == 90 and r.spills]


@pytest.mark.parametrize("name", ["registers", "stack", "shared", "instructions"])
def test_growth_is_reported(name: str) -> None:
    rows = record()
    now = getattr(rows[0], name)
    before: Any = {name: now - 1}
    [line] = complaints(rows, [replace(rows[0], **before), *rows[1:]])
    assert line == f"{rows[0].op}/{rows[0].variant} on sm_{rows[0].sm}: {name} grew from {now - 1} to {now}"


def test_another_triton_is_only_held_to_the_limits() -> None:
    rows = record()
    before = [replace(r, registers=r.registers - 1, triton="0.0.0") for r in rows]
    assert complaints(rows, before) == []
    spilling = [replace(r, spills=8 * (r.sm == 90)) for r in rows]
    assert len(complaints(spilling, before)) == sum(r.sm == 90 for r in rows) > 0


def test_float_atomics_are_reported() -> None:
    rows = [replace(record()[0], float_atomics=1)]
    assert [line.endswith("its sums differ from run to run") for line in complaints(rows, rows)] == [True]


def test_shared_memory_beyond_the_hardware_is_reported() -> None:
    rows = [replace(r, shared=aot.SHARED_LIMIT[r.sm] + 1) for r in record()[:1]]
    assert [line.endswith("exceed " + str(aot.SHARED_LIMIT[rows[0].sm]))
            for line in complaints(rows, rows)] == [True]  # fmt: skip


def test_a_product_without_tensor_cores_is_reported() -> None:
    wanted = {(op, v.name) for op in aot.operations() for v in aot.variants(op) if v.product}
    rows = [replace(r, products=0) for r in record()]
    found = [line for line in complaints(rows, rows) if line.endswith("without tensor-core instructions")]
    assert len(found) == sum((r.op, r.variant) in wanted for r in rows) > 0


def test_variants_come_and_go_with_the_record() -> None:
    rows = record()
    first = f"{rows[0].op}/{rows[0].variant} on sm_{rows[0].sm}"
    assert complaints(rows, rows[1:]) == [f"{first} is not in the record"]
    assert complaints(rows[1:], rows) == [f"{first} is recorded but does not exist"]


def test_the_tool_fails_and_says_how_to_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows, doctored = record(), tmp_path / "doctored.csv"
    write_record(doctored, [replace(r, registers=r.registers - 1) for r in rows])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(aot_kernels, "compile_all", lambda ops, processes: rows)
    monkeypatch.setattr(sys, "argv", ["aot_kernels", "--baseline", str(doctored)])
    assert aot_kernels.main() == 1
    assert HINT in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["aot_kernels", "--baseline", str(doctored), "--record"])
    assert aot_kernels.main() == 0
    assert read_record(doctored) == rows
