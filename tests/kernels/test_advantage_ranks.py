"""Tasks sharded over 1, 2 and 4 ranks: the same groups, the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.distributed
def test_sharding_tasks_over_ranks_changes_no_bit() -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = [sys.executable, "-W", "ignore", *torchrun, str(ROOT / "tests/kernels/advantage_ranks.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len({(f["backend"], f["rules"], f["ranks"]) for f in found}) == len(found) == 3 * 3
    for f in found:
        assert f["different"] == 0, f
        assert f["not_zero"] > 30, f
