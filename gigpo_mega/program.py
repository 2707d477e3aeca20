"""The `gigpo-mega` command, the same as `python -m gigpo_mega`, and how every program of the package ends."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from envs.base import EnvError
from gigpo_mega.errors import ConfigError, UserError
from gigpo_mega.launch import rank_and_world

# Command -> (module with a `main(argv)`, what it does). Modules are imported when their command is given.
COMMANDS = {
    "train": ("gigpo_mega.train", "train an agent by reinforcement learning"),
    "evaluate": ("gigpo_mega.evaluate", "play the held-out panel with a policy"),
    "coldstart": ("gigpo_mega.coldstart.program", "clone an environment's expert into a first policy"),
    "quickstart": ("gigpo_mega.quickstart", "watch an agent learn on two CPU cores, in minutes"),
    "init": ("gigpo_mega.commands.init", "write a folder to start from: environment, recipe and test"),
    "experiment": ("gigpo_mega.experiment.program", "compare variants over many seeds"),
    "convert": ("gigpo_mega.commands.convert", "Hugging Face directories <-> megatron-core checkpoints"),
    "plan": ("gigpo_mega.commands.plan", "memory and time of a run on a cluster, before it starts"),
    "report": ("gigpo_mega.commands.report", "rebuild a run's report.html"),
    "rollout": ("gigpo_mega.commands.rollout", "collect groups with a policy, without a learner"),
    "trace": ("gigpo_mega.commands.trace", "print the episodes of a run, with what was made of each step"),
    "replay": ("gigpo_mega.commands.replay", "train again from the groups of a run, without an engine"),
    "bug-report": ("gigpo_mega.commands.bug_report", "what a report of a bug needs, without secrets"),
    "bench-kernels": ("gigpo_mega.commands.bench_kernels", "measure the Triton kernels and their peers"),
}
OPTIONS = ("--help", "--version", "--install-completion")
UNLISTED = {
    "--install-completion": "gigpo_mega.commands.install_completion",
    "__complete": "gigpo_mega.commands.complete",  # for the shell
}
# torchrun ends all ranks with the first: rank 0 must have said what is wrong by then, and ends the wait.
_SECONDS_FOR_RANK_0 = 10
# How gloo and NCCL say that the other side is gone.
_LOST = re.compile(
    r"connection (was )?(closed|reset)|remote process exited|socket timeout|timed out waiting", re.IGNORECASE
)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command that `argv` (by default the process's arguments) begins with; returns its status.

    Raises UserError for a command that does not exist.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
        head = "usage: gigpo-mega COMMAND ...   (COMMAND --help says more; --version; --install-completion)"
        sys.stdout.write("\n".join([head, "", *listed, ""]))
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"gigpo-mega {version('gigpo-mega')}\n")
        return 0
    if arguments[0] in UNLISTED:
        return importlib.import_module(UNLISTED[arguments[0]]).main(arguments[1:])
    if arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {arguments[0]!r}; {hint}")
    module, _ = COMMANDS[arguments[0]]
    return importlib.import_module(module).main(arguments[1:])


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a program and exit with its status.

    UserError, EnvError and the loss of another process of the launch become one line on stderr and status 2,
    Ctrl-C becomes status 130 and a SIGTERM that was waited for 0, for schedulers; 141 says that the reader of
    stdout has left, e.g. head; any other exception is a bug: a line says how to report it, and its traceback
    follows.
    """
    try:
        status = _status(main)
        sys.stdout.flush()  # here at the latest a closed pipe shows
    except BrokenPipeError:
        if not _reader_has_left():  # it is another pipe, or a socket
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception:  # the traceback follows: its last line is what logs are searched for
        sys.stderr.write("a bug, ours or of your code; for a report of it: gigpo-mega bug-report RUN_DIR\n")
        raise
    sys.exit(status)


def _status(main: Callable[[], int | None]) -> str | int | None:
    """What `main` exits with; says on stderr what ended it."""
    rank, _ = rank_and_world()
    where = f"[rank {rank}] " if rank else ""
    try:
        return main()
    except SystemExit as done:  # of --help, and of argparse
        return done.code
    except (UserError, EnvError) as error:
        if rank == 0 or not isinstance(error, ConfigError):
            sys.stderr.write(f"{where}error: {' '.join(str(error).split())}\n")
        else:
            time.sleep(_SECONDS_FOR_RANK_0)
        return 2
    except RuntimeError as error:
        # torch raises plain RuntimeErrors for gloo and types of its own for NCCL.
        of_torch = type(error) is RuntimeError or type(error).__module__.startswith("torch")
        if "WORLD_SIZE" not in os.environ or not of_torch or not _LOST.search(str(error)):
            raise
        said = str(error).strip().splitlines()[-1]
        advice = "its log says why; the same command with --resume continues from the newest checkpoint"
        sys.stderr.write(f"{where}error: another rank of this run is gone ({said}); {advice}\n")
        return 2
    except KeyboardInterrupt as stop:
        if signal.SIGTERM in stop.args:
            sys.stderr.write(f"{where}stopped by SIGTERM; the same command with --resume continues\n")
            return 0
        sys.stderr.write("interrupted\n")
        return 130


def _reader_has_left() -> bool:
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)  # POLLERR is always reported
    return any(event & select.POLLERR for _, event in stdout.poll(0))


def console() -> NoReturn:
    """The entry point that an installation puts on the PATH; finds the user's modules as `python -m` does."""
    if not {"", os.getcwd()} & set(sys.path):
        # Last: nothing there may shadow a package, nor ours, which an editable installation finds last.
        sys.path += [str(Path(__file__).resolve().parents[1]), os.getcwd()]
    run_main(main)
