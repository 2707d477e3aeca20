"""Programs that tests start: with Python, or as the ranks of a torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests import preloaded

ROOT = Path(__file__).parents[1]
COLD_ENGINES = {"PRELOADED_ENGINE": ""}  # in a program's environment: SGLang takes its seconds to start
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def variables(**more: str) -> dict[str, str]:
    """This process's environment for a program: one thread, the tree's own package, ranks preloaded."""
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHON_EXEC": preloaded.python()}
    return os.environ | ours | more


def run_python(
    *words: str, cold: bool = False, cwd: Path = ROOT, more: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """`python WORDS`, ended, with `more` in its environment; if `cold`, it imports all by itself."""
    python = sys.executable if cold else preloaded.python()
    environment = variables(**more)
    if cold:
        del environment["PYTHON_EXEC"]
    return subprocess.run(
        [python, "-W", "ignore", *words],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def results(world: int, script: str, *words: str) -> list[dict[str, Any]]:
    """The rows that `world` processes of a file of this repository print behind RESULT; all must succeed."""
    torchrun = (*TORCHRUN, str(world)) if world > 1 else ()
    done = run_python(*torchrun, str(ROOT / script), *words)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
