"""Python with torch, megatron-core and the learner, or with SGLang, imported already, for programs of tests.

Importing them takes some six or nine seconds of CPU, and tests start over a hundred programs. One process
imports them once, for all workers of pytest. `python()` is a program that is called like Python: it hands its
arguments, folder, environment and streams to that process and stands for the child that is forked for it: it
passes signals on, ends with its status, and takes it along when it is killed. Engines that such a child
launches are forked, too. A test of the start itself (what is imported when, who is whose parent) uses
`sys.executable`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gigpo_mega.cpu import stubs
from gigpo_mega.stack import Machine

if TYPE_CHECKING:
    from gigpo_mega.config import EngineConfig
    from gigpo_mega.rollout.engines.server import SGLangServer

ROOT = Path(__file__).parents[1]
Kind: TypeAlias = Literal["learner", "engine"]
IMPORTED: dict[Kind, tuple[str, ...]] = {
    "learner": (
        *("torch.distributed.run", "gigpo_mega.coldstart.program"),
        *("gigpo_mega.evaluate", "gigpo_mega.run.run"),
    ),
    "engine": (),
}
WITH_SGLANG: dict[Kind, tuple[str, ...]] = {
    "learner": ("sglang.srt.weight_sync.tensor_bucket",),  # imported to push weights
    "engine": ("sglang.srt.entrypoints.http_server", "gigpo_mega.cpu.attention"),
}
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
PASSED_ON = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1
signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until there is a child to take them
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
answers = server.makefile()
child = int(answers.readline())
for number in PASSED_ON:
    signal.signal(number, lambda number, _: os.kill(child, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
status = int(answers.readline())
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def python(kind: Kind = "learner") -> str:
    """The path of the program; the process that imports is started by the first call of all workers.

    It imports when the first program is started.
    """
    name = f"PRELOADED_{kind.upper()}"
    tree, _, client = os.environ.get(name, "").partition(os.pathsep)
    if tree != str(ROOT):
        client = _start(kind)
        os.environ[name] = f"{ROOT}{os.pathsep}{client}"
    return client


def _start(kind: Kind) -> str:
    folder = tempfile.TemporaryDirectory(prefix="preloaded")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address := f"{folder.name}/socket")
    listener.listen(64)
    ours, theirs = socket.socketpair()  # when ours is closed, the server ends
    sockets = listener.fileno(), theirs.fileno()
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.preloaded", kind, *map(str, sockets)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        pass_fds=sockets,
    )
    listener.close()
    theirs.close()

    def close() -> None:
        ours.close()
        server.wait()
        folder.cleanup()

    atexit.register(close)
    client = Path(folder.name) / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o700)
    return str(client)


@contextlib.contextmanager
def engines() -> Iterator[None]:
    """Engines that this process launches in this block without a GPU are forked."""
    from gigpo_mega.rollout.engines.command import Launch

    build, client = Launch.command, python("engine")

    def command(*arguments: Any, **options: Any) -> list[str]:
        words = build(*arguments, **options)
        return [client, *words[1:]] if "gigpo_mega.cpu.sglang_server" in words else words

    Launch.command = command
    try:
        yield
    finally:
        Launch.command = build


@contextlib.contextmanager
def engine(model: Path, config: EngineConfig, log: Path) -> Iterator[SGLangServer]:
    """A real SGLang server with the weights of `model`."""
    from gigpo_mega.rollout.engines.server import SGLangServer

    server = SGLangServer(model, config, log)
    with engines():
        server.launch()
    with server:
        yield server


@dataclass(frozen=True, slots=True)
class Request:
    """What a child is to run as; `streams` are its standard input, output and error."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]


@dataclass(frozen=True, slots=True)
class Child:
    """A forked process and the client that stands for it."""

    process: int
    client: socket.socket


@dataclass(slots=True)
class Server:
    """Forks a child for each request and tells its client how it ended."""

    listener: socket.socket
    owner: socket.socket
    children: dict[int, Child] = field(default_factory=dict[int, Child])  # by pidfd
    watch: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def serve(self) -> Request | None:
        """A request, in the child that is to run it; None, in the server, when its owner has gone."""
        for file in (self.listener, self.owner):
            self.watch.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self.watch.select():
                if key.fileobj is self.owner:
                    for child in self.children.values():
                        os.kill(child.process, signal.SIGKILL)
                    return None
                if key.fileobj is self.listener:
                    if (request := self._fork()) is not None:
                        return request
                elif key.data:  # a client sends nothing more: it was killed
                    self.watch.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
                else:
                    self._ended(key.fd)

    def _fork(self) -> Request | None:
        client, _ = self.listener.accept()
        header, streams, _, _ = socket.recv_fds(client, 8, 3)
        with client.makefile("rb") as file:
            content = file.read(int.from_bytes(header, "big"))
        if (process := os.fork()) == 0:
            self.watch.close()
            for other in (self.listener, self.owner, client, *(c.client for c in self.children.values())):
                other.close()
            arguments, folder, environment = json.loads(content)
            return Request(arguments, folder, environment, streams)
        for stream in streams:
            os.close(stream)
        handle = os.pidfd_open(process)
        self.children[handle] = Child(process, client)
        self.watch.register(handle, selectors.EVENT_READ)
        self.watch.register(client, selectors.EVENT_READ, process)
        _tell(client, process)
        return None

    def _ended(self, handle: int) -> None:
        child = self.children.pop(handle)
        self.watch.unregister(handle)
        with contextlib.suppress(KeyError):  # it was killed
            self.watch.unregister(child.client)
        os.close(handle)
        _tell(child.client, os.waitstatus_to_exitcode(os.waitpid(child.process, 0)[1]))
        child.client.close()


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        client.sendall(b"%d\n" % number)


def _become(request: Request, more: dict[str, str]) -> None:
    """Run a module or a file as Python would with the request's arguments, `more` in its environment."""
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), line_buffering=True)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(more | request.environment)
    words, safe = list(request.arguments), False
    while words[0] in ("-P", "-W", "-u"):  # no warnings here anyway
        safe |= words[0] == "-P"
        del words[: 2 if words[0] == "-W" else 1]
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = Path.cwd() if module else Path(words[0]).parent.absolute()
    before = [] if safe else [str(first)]
    sys.path[:] = [*before, *filter(None, given), *(entry for entry in sys.path if entry != str(ROOT))]
    with engines() if os.environ.get("PRELOADED_ENGINE") else contextlib.nullcontext():
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")


def _forget_stubs() -> None:
    """A run looks for SGLang's kernels before it installs these itself."""
    finders = [finder for finder in sys.meta_path if isinstance(finder, stubs._StubFinder)]
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in finders]
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)  # a module may be None
        if spec is not None and spec.loader in finders:
            del sys.modules[name]


def main(kind: Kind, listener: int, owner: int) -> None:
    """Import, then serve on two inherited sockets; returns in a child when its program has ended."""
    server = Server(socket.socket(fileno=listener), socket.socket(fileno=owner))
    if server.owner in select.select([server.listener, server.owner], [], [])[0]:
        return  # no program was started
    before = dict(os.environ)
    for module in IMPORTED[kind]:
        import_module(module)
    if not Machine().has_driver():  # sglang asks CUDA for its devices, which no fork could use then
        stubs.install()
        for module in WITH_SGLANG[kind]:
            import_module(module)
        if kind == "learner":
            _forget_stubs()
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has started a thread, which children would not have")
    gc.collect()
    gc.freeze()  # children share these pages
    request = server.serve()
    if request is not None:
        own = {name: os.environ[name] for name in os.environ.keys() - before.keys()}
        _become(request, own if kind == "engine" else {})


if __name__ == "__main__":
    given, *sockets = sys.argv[1:]
    main("engine" if given == "engine" else "learner", *map(int, sockets))
