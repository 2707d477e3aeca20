"""A hub id stands for a directory: from the cache, from the hub, or one line says why not."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gigpo_mega import hub
from gigpo_mega.commands import convert, plan
from gigpo_mega.config.load import load_config
from tests.helpers import refused
from tests.test_start_up import probed
from tests.tiny import write_agent

ROOT = Path(__file__).parents[1]
ID, COMMIT = "Example-Org/tiny-agent.1", "c0ffee" + "0" * 34


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which programs and this process use."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def fill(cache: Path, model: Path, *files: str) -> Path:
    """Lay `files` of a directory, by default all, into the cache as huggingface_hub does; the snapshot."""
    home = cache / f"models--{ID.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for folder in (home / "blobs", home / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(COMMIT)
    for name in files or sorted(path.name for path in model.iterdir()):
        blob = home / "blobs" / sha256((model / name).read_bytes()).hexdigest()
        shutil.copy(model / name, blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def refusal(model: str, weights: bool = True) -> str:
    return refused(lambda: hub.directory(Path(model), weights))


def test_a_model_in_the_cache_is_found_without_the_hub(cache: Path, agent: Path) -> None:
    snapshot = fill(cache, agent)
    assert hub.directory(Path(ID)) == snapshot
    assert hub.directory(Path(ID), weights=False) == snapshot


def test_a_path_that_exists_comes_before_an_id(
    cache: Path, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache, agent)
    monkeypatch.chdir(tmp_path)
    Path(ID).mkdir(parents=True)
    assert hub.directory(Path(ID)) == Path(ID)


@pytest.mark.parametrize("path", [
    "nowhere", "/no/where", "a/b/c", "../a", "~/a", ".a/b", "models/Qwen2.5-7B-Instruct", "runs/policy",
    "tests/policy",
])
def test_what_is_no_id_stays_a_path(path: str, cache: Path) -> None:
    assert hub.directory(Path(path)) == Path(path)


def test_the_policy_of_a_recipes_cold_start_is_missed_with_the_command() -> None:
    small = load_config(["alfworld/small"], "").model.path
    assert refusal(str(small)) == (
        "model.path: runs/alfworld_small_coldstart/policy does not exist yet; make it with "
        "`gigpo-mega coldstart alfworld/small alfworld/small_coldstart`"
    )


def test_a_model_that_is_not_cached_is_one_line_with_the_command(cache: Path) -> None:
    for weights in (True, False):
        assert refusal("Qwen/Qwen2.5-1.5B-Instruct", weights) == (
            "model.path: Qwen/Qwen2.5-1.5B-Instruct is no folder, and the model with that hub id is not in "
            f"{cache}: HF_HUB_OFFLINE forbids downloading it; run `hf download Qwen/Qwen2.5-1.5B-Instruct` "
            "where the hub can be reached, or give a Hugging Face directory"
        )


def test_a_copy_without_its_weights_serves_those_who_need_none(cache: Path, agent: Path) -> None:
    snapshot = fill(cache, agent, "config.json", "tokenizer.json")
    assert hub.directory(Path(ID), weights=False) == snapshot
    assert "are missing in the copy there; run `hf download" in refusal(ID)


def test_a_copy_that_lacks_one_of_many_files_is_incomplete(cache: Path, agent: Path, tmp_path: Path) -> None:
    many = shutil.copytree(agent, tmp_path / "many")
    shutil.move(many / "model.safetensors", many / "model-00001-of-00002.safetensors")
    parts = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    (many / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    snapshot = fill(cache, many)
    assert "are missing in the copy there" in refusal(ID)
    (snapshot / "model-00002-of-00002.safetensors").touch()
    assert hub.directory(Path(ID)) == snapshot


def test_a_hub_that_cannot_be_reached_is_one_line(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gigpo_mega", "train", "--dry-run", "--model.path", ID], cwd=ROOT, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"not in {cache}: the hub cannot be reached (ConnectError); run `hf download {ID}`" in done.stderr


@contextmanager
def fake_hub(model: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has the files of `model` as ID, and which of them it was asked for."""
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    asked: list[str] = []

    class FakeHub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            kind, _, rest = self.path.partition(f"{ID}/")
            if kind == "/api/models/" and rest.startswith("revision/"):
                self.answer(json.dumps({"id": ID, "sha": COMMIT, "siblings": []}).encode())
            elif kind == "/api/models/" and rest.startswith("tree/"):
                tree = [{"type": "file", "path": n, "size": len(f), "oid": n} for n, f in files.items()]
                self.answer(json.dumps(tree).encode())
            elif (name := rest.rpartition("/")[2]) in files:
                asked.append(name)
                self.answer(files[name])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def downloaded(endpoint: str, model: str, weights: bool) -> tuple[int, str]:
    """Status, and the directory or the error, of a process that may ask the hub at `endpoint`."""
    program = (
        "from pathlib import Path; from gigpo_mega import hub; from gigpo_mega.program import run_main\n"
        f"run_main(lambda: print(hub.directory(Path({model!r}), {weights})))"
    )
    more = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ | more, text=True,
                          capture_output=True, check=False)  # fmt: skip
    return done.returncode, done.stdout.strip() or done.stderr.strip()


def test_a_rank_waits_for_another_that_downloads(cache: Path, agent: Path) -> None:
    snapshot = fill(cache, agent, "config.json", "tokenizer.json")
    (cache / ".locks").mkdir()
    program = f"from gigpo_mega.hub import *; print(directory(Path({ID!r}), weights=False))"
    with (cache / f".locks/gigpo-mega--{ID.replace('/', '--')}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rank = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(3)
    assert rank.communicate(timeout=60) == (f"{snapshot}\n", None)


def test_a_cache_that_can_only_be_read_serves(cache: Path, agent: Path) -> None:
    snapshot = fill(cache, agent)
    (cache / ".locks").touch()  # no folder, so no lock can be made
    assert hub.directory(Path(ID)) == snapshot


def test_the_hub_is_asked_for_what_is_needed_and_only_once(cache: Path, agent: Path, tmp_path: Path) -> None:
    full = shutil.copytree(agent, tmp_path / "full")
    for other in ("pytorch_model.bin", "README.md"):
        (full / other).write_text("not needed")
    snapshot = cache / f"models--{ID.replace('/', '--')}/snapshots/{COMMIT}"
    with fake_hub(full) as (endpoint, asked):
        assert downloaded(endpoint, ID, False) == (0, str(snapshot))
        assert not (snapshot / "model.safetensors").exists()
        assert downloaded(endpoint, ID, True) == (0, str(snapshot))
        assert {path.name for path in snapshot.iterdir()} == {path.name for path in agent.iterdir()}
        assert set(asked) == {path.name for path in agent.iterdir()}
        before = len(asked)
        assert downloaded(endpoint, ID, True) == (0, str(snapshot))
        assert len(asked) == before
        status, said = downloaded(endpoint, "Example-Org/other", True)
    assert (snapshot / "model.safetensors").read_bytes() == (agent / "model.safetensors").read_bytes()
    assert status == 2
    assert "the hub has no such model, or you may not read it (hf auth login); run" in said


def test_a_dry_run_of_an_id_needs_no_weights_and_loads_nothing_heavy(
    cache: Path, agent: Path, tmp_path: Path
) -> None:
    fill(cache, agent, *(path.name for path in agent.iterdir() if path.suffix != ".safetensors"))
    status, heavy, said = probed(
        "gigpo_mega", "train", "tests/tiny.yaml", "--dry-run", "--model.path", ID,
        "--environment.tasks.data", str(tmp_path / "games"), "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert (status, heavy) == (0, []), said
    assert f"snapshots/{COMMIT}: qwen2," in said


def test_every_program_with_a_model_takes_an_id(
    cache: Path, agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(cache, agent)
    assert plan.main(["--model", ID, "--gpus-per-node", "1", "--json"]) == 0
    convert.main(["import", "--hf", ID, "--out", str(tmp_path / "checkpoint"), "--tensor", "2"])
    convert.main(["verify", "--hf", ID, "--checkpoint", str(tmp_path / "checkpoint"), "--bits-only"])
    out = str(tmp_path / "back")
    convert.main(["export", "--checkpoint", str(tmp_path / "checkpoint"), "--hf-config", ID, "--out", out])
    assert capsys.readouterr().out.splitlines()[-2:] == ["bits: every tensor is equal", out]
    for program in ("evaluate", "coldstart"):
        status, _, said = probed(f"gigpo_mega.{program}", "--model.path", "Example-Org/none", "--output", out)
        assert status == 2
        assert "run `hf download Example-Org/none` where the hub" in said
