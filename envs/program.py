"""How the programs among the environments end: what a user can fix is one line and status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from envs.base import EnvError


def run(main: Callable[[], object]) -> None:
    """Call `main`; EnvError and OSError become one line on stderr and exit status 2."""
    try:
        main()
    except (EnvError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
