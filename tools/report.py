"""Rebuild a run's report: `python tools/report.py RUN_DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gigpo_mega.errors import run_main
from gigpo_mega.telemetry.report import write_report


def main() -> int:
    """Write RUN_DIR/report.html and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    print(write_report(parser.parse_args().run))
    return 0


if __name__ == "__main__":
    run_main(main)
