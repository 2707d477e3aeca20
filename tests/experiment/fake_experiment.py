"""`gigpo-mega experiment` with FakeTrainer in the place of training."""

from __future__ import annotations

import sys
from pathlib import Path

from gigpo_mega.experiment import jobs, program
from gigpo_mega.program import run_main

FAKE = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))

if __name__ == "__main__":
    jobs.PROGRAM = FAKE
    run_main(program.main)
