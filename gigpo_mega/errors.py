"""What a user can mend, told in one line; everything else is a bug and keeps its traceback."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from envs.base import EnvironmentError


class UserError(Exception):
    """Something the user can mend; the message is one line: the value, the limit, the field, what to do."""


class ConfigError(UserError):
    """A configuration that cannot run; every rank of a launch finds the same one."""


# How gloo and NCCL say that the other side is gone.
_LOST = re.compile(r"connection (was )?(closed|reset)|remote process exited|socket timeout", re.IGNORECASE)


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its status.

    UserError, EnvironmentError and the loss of another process of the launch become one line on stderr and
    status 2, Ctrl-C becomes status 130; any other exception is a bug and keeps its traceback.
    """
    rank = int(os.environ.get("RANK", "0"))
    where = f"[rank {rank}] " if rank else ""
    try:
        status = main() or 0
    except (UserError, EnvironmentError) as error:
        if rank == 0 or not isinstance(error, ConfigError):
            sys.stderr.write(f"{where}error: {' '.join(str(error).split())}\n")
        status = 2
    except RuntimeError as error:  # torch's errors of communication are no narrower
        if "WORLD_SIZE" not in os.environ or not _LOST.search(str(error)):
            raise
        said = str(error).strip().splitlines()[-1]
        advice = "its own log says why, and the same command with --resume goes on from the newest checkpoint"
        sys.stderr.write(f"{where}error: another rank of this run is gone ({said}); {advice}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        status = 130
    sys.exit(status)
