"""Launches an SGLang server, waits until it is healthy, and leaves nothing behind, however the run ends."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

from gigpo_mega.config import EngineConfig
from gigpo_mega.errors import UserError

CPU_KV_TOKENS = 65536  # SGLang would fill 30% of the memory; this holds 128 agents of 500 tokens

Progress = Callable[[float, str], None]


def holds_weights(model: Path) -> bool:
    """True where a model directory has Hugging Face weights; an imported checkpoint has megatron's only."""
    return any(model.glob("*.safetensors"))


class SGLangServer:
    """A server for the Hugging Face directory `model`; a context manager.

    Launches `sglang.launch_server` where there is a GPU and the CPU launcher elsewhere, or only checks the
    server at `config.url`. `version` tags the weights it starts with; where `model` holds none, they are
    random and tagged "none" until weights are pushed. `on_progress(seconds, last log line)` is called about
    twice a second during start-up. Raises UserError, one line, where the server does not become healthy.
    """

    def __init__(
        self,
        model: Path,
        config: EngineConfig,
        log: Path,
        *,
        dtype: str = "float32",
        version: int = 0,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._config = config
        self._log = log
        weights = [str(version)] if holds_weights(model) else ["none", "--load-format", "dummy"]
        self._flags = ["--dtype", dtype, "--random-seed", str(seed), "--weight-version", *weights]
        self._on_progress = on_progress or (lambda _seconds, _line: None)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = (config.url or f"http://127.0.0.1:{config.port or free_port()}").rstrip("/")

    def __enter__(self) -> Self:
        """Launch the server, unless `launch` did, and wait until it is healthy."""
        try:
            self.launch()
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the server and all its processes, and wait until they are gone; harmless when repeated."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()  # the supervisor kills the group when the pipe closes
            self._process.wait()
            self._process = None

    def check(self) -> None:
        """Raise UserError where the launched server has died; a call costs microseconds."""
        if self._process is not None and (status := self._process.poll()) is not None:
            error = self._last_error()
            raise UserError(f"the SGLang server ended with status {status}: {error} (log: {self._log})")

    def launch(self) -> None:
        """Start the server without waiting for it, to overlap its start-up with other work."""
        if self._config.url is not None or self._process is not None:
            return
        if not (self._model / "config.json").is_file():
            raise UserError(f"model.path: {self._model} has no config.json; give a Hugging Face directory")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gigpo_mega.rollout.supervisor", *self._command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(self._config.threads), "HF_HUB_OFFLINE": "1"},
                start_new_session=True,  # Ctrl-C in the terminal must reach us, not the server
            )

    def _command(self) -> list[str]:
        host, port = self.url.removeprefix("http://").split(":")
        tokens = self._config.max_total_tokens
        if has_gpu():
            module, idle = "sglang.launch_server", []
        else:
            module, tokens = "gigpo_mega.cpu.sglang_server", tokens or CPU_KV_TOKENS
            idle = ["--sleep-on-idle"]  # an idle scheduler would otherwise take a core from the learner
        size = [] if tokens is None else ["--max-total-tokens", str(tokens)]
        return [
            *(sys.executable, "-m", module, "--model-path", str(self._model), "--host", host, "--port", port),
            *("--skip-tokenizer-init", "--skip-server-warmup", "--log-level", "warning"),
            *("--mem-fraction-static", str(self._config.memory_fraction)),
            *size,
            *idle,
            *self._flags,
            *self._config.arguments,
        ]

    def _wait(self) -> None:
        start = time.monotonic()
        while not _healthy(self.url):
            self.check()
            seconds = time.monotonic() - start
            if seconds > self._config.startup_timeout:
                raise UserError(self._timed_out())
            self._on_progress(seconds, self._tail()[-1] if self._process is not None else "")
            time.sleep(0.25)
        if self._process is not None:
            _post(f"{self.url}/freeze_gc")  # without a warm-up, the server's own call comes too early

    def _timed_out(self) -> str:
        limit = f"within engine.startup_timeout = {self._config.startup_timeout:g} s"
        if self._process is None:
            return f"engine.url: the server at {self.url} was not healthy {limit}; start it or mend the URL"
        return (
            f"the SGLang server was not healthy {limit}: {self._last_error()} (log: {self._log}); "
            "raise the limit or mend what the log says"
        )

    def _last_error(self) -> str:
        lines = self._tail()
        errors = [line for line in lines if re.search(r"^\w*(\.\w+)*(Error|Exception)\b|\berror:", line)]
        return (errors or lines)[-1][:300]

    def _tail(self) -> list[str]:
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - 16384))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()] or ["its log is empty"]


def has_gpu() -> bool:
    """Whether torch can use a device here, told without importing it (the CPU shims patch torch.cuda)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or version("torch").endswith("+cpu"):
        return False
    return any(device.exists() for device in (Path("/dev/nvidiactl"), Path("/dev/kfd")))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _post(url: str) -> None:
    with (
        contextlib.suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30),
    ):
        pass


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
