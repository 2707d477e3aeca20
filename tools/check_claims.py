"""Compare the numbers in README.md and docs with the records that docs/claims.yaml says they come from.

python tools/check_claims.py            # in `make lint`: a line for each wrong number, exit status 1
python tools/check_claims.py --write    # after a new record: put its numbers into the pages
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.claims import check, rewrite


def main() -> int:
    """Check the claims, after writing the numbers if asked to; returns the exit status."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--write", action="store_true", help="replace mapped numbers by the records'")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    options = parser.parse_args()
    if options.write:
        print(*rewrite(options.root), sep="\n")
    problems = check(options.root)
    if problems:
        print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
