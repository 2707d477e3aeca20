"""Runs a command that must not outlive us: `python -m gigpo_mega.rollout.supervisor COMMAND...`.

Its standard input is a pipe. When that closes, because its owner asked or died however abruptly, the command
and its children are killed; when the command ends by itself, so do its children, and its status is ours.
Standard library only: it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Supervise `command` in a process group of its own and return its status (128 + N after signal N)."""
    libc = ctypes.CDLL(None)

    def die_with_supervisor() -> None:  # this process has one thread, so a preexec_fn is safe
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=die_with_supervisor
    )
    ended = os.pidfd_open(child.pid)
    select.select([sys.stdin, ended], [], [])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
