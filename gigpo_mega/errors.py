"""What a user can mend, told in one line; everything else is a bug and keeps its traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from envs.base import EnvironmentError


class UserError(Exception):
    """Something the user can mend; the message is one line: the value, the limit, the field, what to do."""


class ConfigError(UserError):
    """A configuration that cannot run; every rank of a launch finds the same one."""


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its status.

    UserError and EnvironmentError become one line on stderr and status 2, Ctrl-C becomes status 130; any
    other exception is a bug and keeps its traceback.
    """
    try:
        status = main() or 0
    except (UserError, EnvironmentError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or not isinstance(error, ConfigError):
            where = f"[rank {rank}] " if rank else ""
            sys.stderr.write(f"{where}error: {' '.join(str(error).split())}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        status = 130
    sys.exit(status)
