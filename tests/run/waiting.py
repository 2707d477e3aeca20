"""A leader that is busy for long, is killed or hangs, or a rank that is late:
`torchrun ... tests/run/waiting.py FAULT`."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

from gigpo_mega.config import ParallelConfig
from gigpo_mega.learner import layout as layouts
from gigpo_mega.program import run_main
from gigpo_mega.run import ranks

LIMIT = 2.0  # seconds of a collective
LEADER = {
    "busy": lambda: time.sleep(3 * LIMIT),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hung": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def main() -> None:
    ranks.SIGN_SECONDS, layouts.SILENCE = LIMIT / 2, timedelta(seconds=LIMIT)
    layout = layouts.initialize(ParallelConfig(timeout=LIMIT), seed=0)
    ranks.on_leader(layout, os.getpid)  # both ranks have started
    if sys.argv[1] == "late":
        time.sleep(layout.rank * LIMIT / 2)
        came = time.monotonic()
        ranks.meet(layout)
        sys.stdout.write(f"{came} {time.monotonic()}\n")
        return
    ranks.on_leader(layout, LEADER[sys.argv[1]])
    sys.stdout.write(f"rank {layout.rank} goes on: {ranks.on_leader(layout, os.getpid)}\n")


if __name__ == "__main__":
    run_main(main)
