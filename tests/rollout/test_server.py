"""The server's life: healthy, dead, late, and never left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch

from gigpo_mega.config import EngineConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.engines.server import SGLangServer, hold_port, wait
from tests import preloaded
from tests.conftest import Served
from tests.helpers import refused, wait_for
from tests.programs import ROOT
from tests.tiny import free_port, write_policy

SLEEPER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(600)
"""
HEALTHY = """
import http.server, json, sys
class FakeSGLang(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"served_model_name": sys.argv[2]}).encode())
    do_POST = do_GET
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), FakeSGLang).serve_forever()
"""


def launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, timeout: float = 20.0
) -> SGLangServer:
    """A server whose command is `script` instead of SGLang."""
    (tmp_path / "config.json").write_text("{}")
    config = EngineConfig(startup_timeout=timeout, port=free_port())
    server = SGLangServer(tmp_path, config, tmp_path / "log")
    command = [sys.executable, "-c", script, str(config.port), server._name]
    monkeypatch.setattr(server, "_command", lambda: command)
    return server


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def gone(processes: set[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_a_healthy_server_is_entered_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = launcher(tmp_path, monkeypatch, HEALTHY)
    before = descendants()  # the session's real server may be among them
    with server:
        started = descendants() - before
        server.check()
        assert len(started) >= 2
    assert gone(started, 5)
    server.close()


def test_a_server_of_somebody_else_at_our_port_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our weights would overwrite its own. It can still take the port while ours starts, by its number."""
    server = launcher(tmp_path, monkeypatch, SLEEPER)
    port = str(server.url.rpartition(":")[2])
    with subprocess.Popen([sys.executable, "-c", HEALTHY, port, "another run's"]) as other:
        try:
            server.launch()  # it holds the port already
            with pytest.raises(UserError) as said:
                wait([server])
        finally:
            other.kill()
            server.close()
    assert str(said.value).startswith(f"engine.port {port}: another server answers at {server.url} ")
    assert "another run's" in str(said.value)


def test_a_port_where_a_program_listens_is_refused_before_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^engine.port {port}: Address already in use at 127.0.0.1; ch"):
            SGLangServer(tmp_path, EngineConfig(port=port), tmp_path / "log")
    with pytest.raises(UserError, match=r"^no port for an SGLang server at 192\.0\.2\.1: Cannot assign"):
        SGLangServer(tmp_path, EngineConfig(), tmp_path / "log", host="192.0.2.1")  # of documentation


@pytest.mark.parametrize("reuse", [False, True])
def test_a_held_port_is_given_to_nobody_else_and_its_server_can_listen_there(reuse: bool) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    count = min(2000, (last - first) // 4, limit[0] // 4)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(hold_port("127.0.0.1")) for _ in range(count)]
        ports = {one.getsockname()[1] for one in held}
        for _ in range(count):
            other = stack.enter_context(socket.socket())
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] not in ports
        server = stack.enter_context(socket.create_server(held[0].getsockname()))
        stack.enter_context(socket.create_connection(server.getsockname()))


def in_use(server: SGLangServer) -> bool:
    """Whether another program is refused the server's port."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", int(server.url.rpartition(":")[2])))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def test_a_server_that_was_closed_has_its_port_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = launcher(tmp_path, monkeypatch, HEALTHY)
    for _ in range(2):
        with server:
            assert in_use(server)


def test_nobody_else_can_take_the_port_while_a_server_is_launched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the moment between the two, either."""
    server = launcher(tmp_path, monkeypatch, HEALTHY)
    launch, between = server.launch, list[bool]()

    def launch_again() -> None:
        between.append(in_use(server))
        launch()

    with server:
        first = server._process
        monkeypatch.setattr(server, "launch", launch_again)
        server.relaunch()
        wait([server])
        assert server._process is not first
        assert first is not None
        assert first.returncode is not None
    assert between == [True]


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_asked_for_the_engine(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = launcher(tmp_path, monkeypatch, HEALTHY)
    with server:
        server.check()


def test_an_early_death_is_one_line_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = launcher(tmp_path, monkeypatch, "raise RuntimeError('no room for the KV cache')")
    with pytest.raises(UserError) as caught, server:
        pass
    message = str(caught.value)
    assert "status 1" in message
    assert "RuntimeError: no room for the KV cache" in message
    assert str(tmp_path / "log") in message
    assert "\n" not in message


def test_the_log_of_the_server_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = launcher(tmp_path, monkeypatch, "import os; raise RuntimeError(f'process {os.getppid()}')")
    causes: list[str] = []
    for _ in range(3):
        with pytest.raises(UserError) as caught, server:
            pass
        causes.append(str(caught.value).partition("RuntimeError: ")[2].partition(" (log")[0])
    assert len(set(causes)) == 3
    assert causes[2] in (tmp_path / "log").read_text()
    assert causes[1] in (tmp_path / "log.1").read_text()


def test_a_server_that_never_gets_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print('loading weights', flush=True)" + SLEEPER
    server = launcher(tmp_path, monkeypatch, script, timeout=1.0)
    progress: list[float] = []
    before = descendants()
    server.launch()
    wait_for(lambda: "loading weights" in (tmp_path / "log").read_text())
    start = time.monotonic()
    message = refused(lambda: wait([server], progress.append))
    assert time.monotonic() - start > 1.0 > progress[0]
    assert progress == sorted(progress)
    server.close()
    assert "engine.startup_timeout = 1 s" in message
    assert "loading weights" in message
    assert gone(descendants() - before, 10)


def test_a_url_where_nobody_answers() -> None:
    config = EngineConfig(url=f"http://127.0.0.1:{free_port()}/", startup_timeout=0.3)
    with pytest.raises(UserError, match=r"engine.url: .* not healthy within engine.startup_timeout = 0.3 s"):
        SGLangServer(Path("unused"), config, Path("unused")).__enter__()


def test_a_model_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path: .* has no config.json"):
        SGLangServer(tmp_path, EngineConfig(), tmp_path / "log").__enter__()


@pytest.mark.parametrize(("family", "named"), [("qwen2", "Qwen2ForCausalLM"), ("llama", "LlamaForCausalLM")])
@pytest.mark.parametrize("given", [{}, {"architectures": None}])
def test_the_server_is_told_the_architecture_that_config_json_leaves_to_model_type(
    tmp_path: Path, family: str, named: str, given: dict[str, None]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **given}))
    command = SGLangServer(tmp_path, EngineConfig(), tmp_path / "log")._command()
    told = command[command.index("--json-model-override-args") + 1]
    assert json.loads(told) == {"architectures": [named]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "architectures": [named]}))
    assert "--json-model-override-args" not in SGLangServer(tmp_path, EngineConfig(), tmp_path)._command()


@pytest.mark.engine
def test_a_model_whose_config_names_no_architecture_is_served(tmp_path: Path) -> None:
    model = write_policy(tmp_path / "model")
    fields = json.loads((model / "config.json").read_text())
    del fields["architectures"]
    (model / "config.json").write_text(json.dumps(fields))
    with preloaded.engine(model, EngineConfig(max_total_tokens=1024), tmp_path / "log") as server:
        server.check()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_killed_owner(tmp_path: Path, end: signal.Signals) -> None:
    owner = tmp_path / "owner.py"
    owner.write_text(
        textwrap.dedent(
            f"""
            import signal, sys, time
            from pathlib import Path
            from gigpo_mega.config import EngineConfig
            from gigpo_mega.rollout.engines.server import SGLangServer, wait
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            server = SGLangServer(Path({str(tmp_path)!r}), EngineConfig(), Path({str(tmp_path / "log")!r}))
            server._command = lambda: [sys.executable, "-c", {SLEEPER!r}]
            server.launch()
            time.sleep(600)
            """
        )
    )
    (tmp_path / "config.json").write_text("{}")
    process = subprocess.Popen([sys.executable, str(owner)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    family = psutil.Process(process.pid)
    wait_for(lambda: len(family.children(recursive=True)) == 3)
    started = set(family.children(recursive=True))  # the supervisor, the server, the server's child
    process.send_signal(end)
    process.wait(timeout=10)
    assert gone(started, 5)


@pytest.mark.engine
def test_processes_of_a_server_share_what_it_has_imported_and_end_when_its_owner_is_killed(
    tmp_path: Path,
) -> None:
    owner = tmp_path / "owner.py"
    owner.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            from pathlib import Path
            from gigpo_mega.config import EngineConfig
            from gigpo_mega.rollout.engines.server import SGLangServer, wait
            log = Path({str(tmp_path / "log")!r})
            with SGLangServer(Path({str(tmp_path / "model")!r}), EngineConfig(max_total_tokens=1024), log):
                Path({str(tmp_path / "ready")!r}).touch()
                time.sleep(600)
            """
        )
    )
    write_policy(tmp_path / "model")
    process = subprocess.Popen([sys.executable, str(owner)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for((tmp_path / "ready").exists, 240)
    started = set(psutil.Process(process.pid).children(recursive=True))
    named = {" ".join(child.cmdline()): child for child in started}
    assert any("scheduler" in name for name in named)
    if not torch.cuda.is_available():  # a CUDA context cannot be forked
        (detokenizer,) = [child for name, child in named.items() if "detokenizer" in name]
        memory = detokenizer.memory_full_info()
        assert memory.uss < 0.5 * memory.rss, memory
    process.kill()
    process.wait(timeout=10)
    assert gone(started, 5)


@pytest.mark.engine
def test_attach_to_a_running_server(served: Served) -> None:
    with SGLangServer(Path("unused"), EngineConfig(url=served.url + "/"), Path("unused")) as server:
        assert server.url == served.url
        server.check()


def test_named_semaphores_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process leaves those to multiprocessing's resource tracker, which must outlive it."""
    semaphores = """
import multiprocessing
locks = [multiprocessing.get_context("spawn").Lock() for _ in range(3)]
print(*(f"sem.{lock._semlock.name.lstrip('/')}" for lock in locks), flush=True)
"""
    server = launcher(tmp_path, monkeypatch, semaphores + HEALTHY)
    with server:
        files = [Path("/dev/shm") / name for name in (tmp_path / "log").read_text().split()]
        assert [file.exists() for file in files] == [True] * 3
    assert [file.exists() for file in files] == [False] * 3
