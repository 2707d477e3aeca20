"""Runs a command that must not outlive us: `python -m gigpo_mega.rollout.engines.supervisor COMMAND...`.

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
import time

PR_SET_PDEATHSIG = 1
TRACKER_SECONDS = 2.0  # multiprocessing's resource tracker ends last, after it has removed named semaphores


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
    for member in _members(child.pid):
        if b"resource_tracker" not in _command(member):
            _kill(member)
    status = child.wait()
    deadline = time.monotonic() + TRACKER_SECONDS
    while _members(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    for member in _members(child.pid):
        _kill(member)
    return status if status >= 0 else 128 - status


def _members(group: int) -> list[int]:
    """Processes of a process group, without those that have ended and only await their parent."""
    members = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, _, process_group = _read(int(process), "stat").rpartition(b")")[2].split()[:3]
            if int(process_group) == group and state != b"Z":
                members.append(int(process))
    return members


def _command(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return _read(process, "cmdline")
    return b""


def _read(process: int, name: str) -> bytes:
    with open(f"/proc/{process}/{name}", "rb") as file:
        return file.read()


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
