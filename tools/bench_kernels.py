"""`gigpo-mega bench-kernels` from a checkout: `python tools/bench_kernels.py ...`."""

from __future__ import annotations

from gigpo_mega.commands.bench_kernels import main
from gigpo_mega.program import run_main

if __name__ == "__main__":
    run_main(main)
