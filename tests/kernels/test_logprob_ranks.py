"""A vocabulary split over 2 and 4 ranks: one gather, the same bits everywhere, the values of one rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = [sys.executable, "-W", "ignore", *torchrun, str(ROOT / "tests/kernels/logprob_ranks.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]


def test_every_case_ran(found: list[dict[str, Any]]) -> None:
    assert len({(f["backend"], f["ranks"], f["case"]) for f in found}) == len(found) == 3 * 2 * 4


def test_every_rank_has_the_same_bits(found: list[dict[str, Any]]) -> None:
    assert all(f["same_bits"] for f in found)


def test_values_and_gradients_are_those_of_one_rank(found: list[dict[str, Any]]) -> None:
    for f in found:
        assert f["value_error"] < 3e-6, f
        assert f["one_rank_error"] < 2e-6, f
        assert f["gradient_error"] < 5e-6, f


def test_one_gather(found: list[dict[str, Any]]) -> None:
    fused = [f for f in found if not f["backend"].startswith("reference")]
    assert {f["gathers"] for f in fused} == {1}
