"""tools/bench_learner.py on this machine, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_throughput_is_what_the_seconds_say() -> None:
    command = [sys.executable, "tools/bench_learner.py", "--json", "--rows", "4", "--updates", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
                          env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.splitlines()[-1])
    tokens = 4 * (record["work"]["prompt"] + record["work"]["response"])
    assert record["tokens_per_second"] == pytest.approx(tokens / record["seconds"]["median"])
    assert 0 < record["of_measured_product"] < 1
    assert record["mfu"] is None  # no data sheet for a CPU
