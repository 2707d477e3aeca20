"""The programs of environments: what a user can fix is one line and status 2, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from envs.base import EnvError
from envs.program import run
from envs.search import server

ROOT = Path(__file__).parents[2]


def complaint(tmp_path: Path, module: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("module", "arguments", "said"), [
    ("envs.webshop.generate", ["--output", "{file}"], "{file} is a file; choose another folder"),
    ("envs.webshop.generate", ["--output", "{file}/x"], "{file}/x"),
    ("envs.webshop.generate", ["--output", "{new}", "--products", "0"], "generate.products: 0 is not in 1.."),
    ("envs.webshop.generate", ["--output", "{new}", "--kinds", "0"], "generate.kinds: 0 is not in 1..46"),
    ("envs.webshop.generate", ["--output", "{new}", "--values", "0"], "generate.values: 0 is not in 1.."),
    ("envs.webshop.generate", [], "the following arguments are required: --output"),
    ("envs.search.offline", ["{file}"], "{file} is a file; choose another folder"),
    ("envs.search.offline", ["{file}/x"], "{file}/x"),
    ("envs.search.offline", [], "the following arguments are required: folder"),
    ("envs.search.offline", ["a", "b"], "unrecognized arguments: b"),
    ("envs.search.server", ["--corpus", "{new}"], "there is no corpus {new}"),
    ("envs.alfworld.generate", ["--output", "{file}", "--train", "1"], "{file}"),
    ("envs.alfworld.generate", ["--output", "{new}", "--train", "-1"], "--train: -1 is below 0"),
    ("envs.alfworld.generate", ["--output", "{new}"], "no games are asked for"),
])  # fmt: skip
def test_what_a_user_can_fix_is_one_line(
    module: str, arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    paths = {"file": tmp_path / "file", "new": tmp_path / "new"}
    given = [argument.format(**paths) for argument in arguments]
    assert said.format(**paths) in complaint(tmp_path, module, *given)


def test_what_is_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ZeroDivisionError):
        run(lambda: fail(ZeroDivisionError()))
    with pytest.raises(SystemExit) as caught:
        run(lambda: fail(EnvError("two\nlines")))
    assert (caught.value.code, capsys.readouterr().err) == (2, "error: two lines\n")


@pytest.mark.parametrize(("options", "bound", "warned"), [
    ([], "127.0.0.1", []), (["--host", "localhost"], "127.0.0.1", []),
    (["--host", "0.0.0.0"], "0.0.0.0", ["0.0.0.0: anyone who reaches this address can search"]),
])  # fmt: skip
def test_the_retriever_listens_on_the_loopback_unless_told_and_warned_otherwise(
    options: list[str], bound: str, warned: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async def listen(app: web.Application, host: str, port: int) -> list[str]:
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            return [address[0] for address in runner.addresses if "." in address[0]]  # not of IPv6
        finally:
            await runner.cleanup()

    def run_app(app: web.Application, host: str, port: int, **_: Any) -> None:
        found.extend(asyncio.run(listen(app, host, port)))

    found = list[str]()
    monkeypatch.setattr(web, "run_app", run_app)
    (tmp_path / "corpus.jsonl").write_text('{"contents": "a town"}\n')
    server.main(["--corpus", str(tmp_path / "corpus.jsonl"), "--port", "0", *options])
    assert found == [bound]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(";")[0] for line in warnings] == warned
