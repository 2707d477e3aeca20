"""tools/bench_learner.py, run once on this machine."""

from __future__ import annotations

import json

import pytest

from tests.programs import run_python


def test_throughput_is_what_the_seconds_say() -> None:
    words = ("--json", "--rows", "4", "--updates", "1")
    done = run_python("tools/bench_learner.py", *words, more={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.splitlines()[-1])
    tokens = 4 * (record["work"]["prompt"] + record["work"]["response"])
    assert record["tokens_per_second"] == pytest.approx(tokens / record["seconds"]["median"])
    assert 0 < record["of_measured_product"] < 1
    assert record["mfu"] is None  # no data sheet for a CPU
