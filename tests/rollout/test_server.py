"""The server's life: healthy, dead, late, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from gigpo_mega.config import EngineConfig
from gigpo_mega.errors import UserError
from gigpo_mega.rollout.server import SGLangServer, free_port
from tests.conftest import Served
from tests.tiny import write_policy

SLEEPER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(600)
"""
HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    do_POST = do_GET
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, timeout: float = 20.0
) -> tuple[SGLangServer, list[tuple[float, str]]]:
    """A server whose command is `script` instead of SGLang, and what it reported as progress."""
    (tmp_path / "config.json").write_text("{}")
    progress: list[tuple[float, str]] = []
    config = EngineConfig(startup_timeout=timeout, port=free_port())
    server = SGLangServer(
        tmp_path, config, tmp_path / "log", on_progress=lambda seconds, line: progress.append((seconds, line))
    )
    monkeypatch.setattr(server, "_command", lambda: [sys.executable, "-c", script, str(config.port)])
    return server, progress


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def gone(processes: set[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_a_healthy_server_is_entered_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = launcher(tmp_path, monkeypatch, HEALTHY)
    before = descendants()  # the session's real server may be among them
    with server:
        started = descendants() - before
        server.check()
        assert len(started) >= 2
    assert gone(started, 5)
    server.close()


def test_an_early_death_is_one_line_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = launcher(tmp_path, monkeypatch, "raise RuntimeError('no room for the KV cache')")
    with pytest.raises(UserError) as caught, server:
        pass
    message = str(caught.value)
    assert "status 1" in message
    assert "RuntimeError: no room for the KV cache" in message
    assert str(tmp_path / "log") in message
    assert "\n" not in message


def test_a_server_that_never_gets_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print('loading weights', flush=True)" + SLEEPER
    server, progress = launcher(tmp_path, monkeypatch, script, timeout=1.5)
    before = descendants()
    with pytest.raises(UserError) as caught, server:
        pass
    assert "engine.startup_timeout = 1.5 s" in str(caught.value)
    assert "loading weights" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert progress[-1][1] == "loading weights"
    assert 1.0 < progress[-1][0] < 3.0
    assert gone(descendants() - before, 1)


def test_a_url_where_nobody_answers() -> None:
    config = EngineConfig(url=f"http://127.0.0.1:{free_port()}/", startup_timeout=0.3)
    with pytest.raises(UserError, match=r"engine.url: .* not healthy within engine.startup_timeout = 0.3 s"):
        SGLangServer(Path("unused"), config, Path("unused")).__enter__()


def test_a_model_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path: .* has no config.json"):
        SGLangServer(tmp_path, EngineConfig(), tmp_path / "log").__enter__()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_killed_owner(tmp_path: Path, end: signal.Signals) -> None:
    owner = tmp_path / "owner.py"
    owner.write_text(
        textwrap.dedent(
            f"""
            import signal, sys, time
            from pathlib import Path
            from gigpo_mega.config import EngineConfig
            from gigpo_mega.rollout.server import SGLangServer
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            server = SGLangServer(Path({str(tmp_path)!r}), EngineConfig(), Path({str(tmp_path / "log")!r}))
            server._command = lambda: [sys.executable, "-c", {SLEEPER!r}]
            server.launch()
            time.sleep(600)
            """
        )
    )
    (tmp_path / "config.json").write_text("{}")
    process = subprocess.Popen([sys.executable, str(owner)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    family = psutil.Process(process.pid)
    deadline = time.monotonic() + 30
    while len(family.children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    started = set(family.children(recursive=True))  # the supervisor, the server, the server's child
    assert len(started) == 3
    process.send_signal(end)
    process.wait(timeout=10)
    assert gone(started, 5)


@pytest.mark.engine
def test_kill_9_of_the_owner_leaves_no_sglang_process(tmp_path: Path) -> None:
    owner = tmp_path / "owner.py"
    owner.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            from pathlib import Path
            from gigpo_mega.config import EngineConfig
            from gigpo_mega.rollout.server import SGLangServer
            log = Path({str(tmp_path / "log")!r})
            with SGLangServer(Path({str(tmp_path / "model")!r}), EngineConfig(max_total_tokens=1024), log):
                Path({str(tmp_path / "ready")!r}).touch()
                time.sleep(600)
            """
        )
    )
    write_policy(tmp_path / "model")
    process = subprocess.Popen([sys.executable, str(owner)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    deadline = time.monotonic() + 240
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (tmp_path / "ready").exists()
    started = set(psutil.Process(process.pid).children(recursive=True))
    assert any("scheduler" in " ".join(child.cmdline()) for child in started)
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
    server, _ = launcher(tmp_path, monkeypatch, semaphores + HEALTHY)
    with server:
        files = [Path("/dev/shm") / name for name in (tmp_path / "log").read_text().split()]
        assert [file.exists() for file in files] == [True] * 3
    assert [file.exists() for file in files] == [False] * 3
