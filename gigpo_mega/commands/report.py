"""Rebuild RUN_DIR/report.html from the files in the folder of a run, and print its path.

With OTHER, the folder of a second run, write RUN_DIR/report_against_OTHER.html instead: the curves and
held-out panels of both, and the settings in which they differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gigpo_mega.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report; raises UserError if a folder holds neither metrics nor an evaluation."""
    parser = argparse.ArgumentParser(prog="gigpo-mega report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("other", type=Path, metavar="OTHER", nargs="?", help="folder of another run")
    options = parser.parse_args(argv)
    from gigpo_mega.telemetry.report.build import write_report
    from gigpo_mega.telemetry.report.comparison import write_comparison

    try:
        print(write_comparison(options.run, options.other) if options.other else write_report(options.run))
    except OSError as error:
        raise UserError(f"no report can be made of it: {error.filename}: {error.strerror}") from None
