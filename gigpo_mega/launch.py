"""What torchrun says to its processes, and the environment without it for processes of our own."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import sysconfig
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
_OPEN_FILES = 1 << 16
_ROLES = ("RANK", "WORLD_SIZE", "NAME")
_TORCHRUN = frozenset({
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "TORCH_NCCL_ASYNC_ERROR_HANDLING", *(f"ROLE_{name}" for name in _ROLES),
})  # fmt: skip


def rank_and_world() -> tuple[int, int]:
    """(rank, world size) as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def node() -> int:
    """The number of this node in the launch."""
    return int(os.environ.get("GROUP_RANK", "0"))


def leads_node() -> bool:
    """Whether this is the process that stands for its node: it runs the engines there."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def node_address() -> str:
    """The address at which the launch's other nodes reach this one; the loopback if there are none."""
    _, world = rank_and_world()
    if int(os.environ.get("LOCAL_WORLD_SIZE", str(world))) == world:
        return "127.0.0.1"
    return address_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def address_towards(host: str, port: int) -> str:
    """The address of this machine at which `host` reaches it; raises OSError if there is no way there."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:  # sends nothing: asks for the route
        probe.connect(address)
        return str(probe.getsockname()[0])


def import_path() -> str:
    """The PYTHONPATH with which another process imports as this one does, in its order."""
    paths = [*(path or os.getcwd() for path in sys.path), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


def is_here(host: str) -> bool:
    """Whether `host` is a name or an address of this machine; a name that cannot be resolved is not."""
    with contextlib.suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
                probe.bind(address)  # no machine but its own may
                return True
    return False


def child_environment(**changes: str) -> dict[str, str]:
    """Our environment without what torchrun set, and with `changes`: for engines and environment workers.

    A torch.distributed that starts in a child would wait for ever at torchrun's own store. A child that is
    started with `-P` finds this package, installed or not, and nothing of its working directory.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _TORCHRUN and not name.startswith("TORCHELASTIC_")
    }
    installed = {os.path.realpath(path) for path in sysconfig.get_paths().values()}
    paths = [*({_ROOT} - installed), os.environ.get("PYTHONPATH", "")]
    return inherited | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | changes


def raise_open_files() -> None:
    """Let this process open as many files as the system allows: each request to an engine is a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
