"""Whatever a user gets wrong ends as one line that says what to do, with status 2 and no traceback."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from envs.base import EnvError
from gigpo_mega import train
from gigpo_mega.errors import UserError
from tests import preloaded
from tests.helpers import wait_for
from tests.programs import COLD_ENGINES, run_python, variables
from tests.tiny import write_agent

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "tiny.yaml"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_agent(tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from envs.alfworld.sources import task_source

    folder = tmp_path_factory.mktemp("data") / "games"
    how = {"games": {"train": 2, "valid_unseen": 2}, "receptacles": 4, "objects": 3}
    task_source(str(folder), generate=how)
    return folder


def refusal(*arguments: str) -> str:
    """What a training says that is refused before it starts any process."""
    with pytest.raises((UserError, EnvError)) as caught:
        train.main([str(CONFIG), *arguments])
    return str(caught.value)


def complaint(*arguments: str) -> str:
    """The one error line of a training that fails after it has started processes."""
    done = run_python("-m", "gigpo_mega.train", str(CONFIG), *arguments, more=COLD_ENGINES)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def alive(marker: str) -> list[list[str]]:
    """Command lines of the processes that mention `marker`."""
    lines: list[list[str]] = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if marker in " ".join(line)]


def test_unknown_config_key():
    line = refusal("--advantage.gama", "0.9")
    assert line.startswith("unknown key advantage.gama (command line); did you mean advantage.gamma")


def test_unknown_environment_and_its_options(agent: Path):
    model = ("--model.path", str(agent))
    assert refusal(*model, "--environment.name", "alfwrld") == (
        "environment.name: unknown environment 'alfwrld'; known: alfworld, gymnasium, openenv, scienceworld, "
        "search, skyrl_gym, sokoban, textworld, verl_agent, webshop")
    assert refusal(*model, "--environment.options.limit", "3").startswith(
        "environment alfworld: unknown key environment.options.limit; known: max_steps, anchor")
    assert refusal(*model, "--environment.tasks.folder", "x").startswith(
        "environment alfworld: unknown key environment.tasks.folder; known: data")


def test_missing_model():
    assert refusal().startswith("model.path is not set; give a Hugging Face directory")
    assert refusal("--model.path", "nowhere").startswith("model.path: nowhere/config.json does not exist;")


def test_missing_game_folder(agent: Path, tmp_path: Path):
    line = refusal("--model.path", str(agent), "--environment.tasks.generate", "null",
                   "--environment.tasks.data", str(tmp_path / "no"))
    assert line.startswith(f"{tmp_path / 'no'}: no folder json_2.1.1/train or train in it; make games with")


def test_truncated_game_file(agent: Path, games: Path):
    (game, *_) = sorted(games.rglob("train/**/game.tw-pddl"))
    whole = game.read_bytes()
    game.write_bytes(whole[: len(whole) // 2])
    try:
        line = refusal("--model.path", str(agent), "--environment.tasks.data", str(games))
    finally:
        game.write_bytes(whole)
    assert line.startswith(f"{game}: not a complete JSON file")
    assert line.endswith("it is truncated or damaged: generate or download it again")


def test_tensor_size_that_does_not_divide_the_heads(agent: Path):
    assert refusal("--model.path", str(agent), "--parallel.tensor", "3") == (
        "parallel.tensor 3 does not divide the model's 4 attention heads; choose a divisor of 4")


@pytest.mark.distributed
def test_output_of_another_run(agent: Path, games: Path, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n')
    line = complaint("--model.path", str(agent), "--environment.tasks.data", str(games),
                     "--output", str(tmp_path))
    assert line == f"output: {tmp_path} holds a run already; choose another output or --resume"


@pytest.mark.distributed
def test_checkpoint_of_another_model(agent: Path, games: Path, tmp_path: Path):
    state = tmp_path / "checkpoints" / "iteration_000001" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"shape": {"hidden": 4096}, "files": {}}))
    line = complaint("--model.path", str(agent), "--environment.tasks.data", str(games),
                     "--output", str(tmp_path), "--resume")
    assert f"{state.parent} is a checkpoint of another model: " in line
    assert "hidden 4096 (here 32)" in line
    assert json.loads(state.read_text()) == {"shape": {"hidden": 4096}, "files": {}}


@pytest.mark.engine
@pytest.mark.parametrize(
    ("number", "status", "last"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 0, "stopped by SIGTERM; the same command with --resume continues"),
    ],
)
def test_a_signal_while_the_engine_starts_ends_the_run_in_seconds(
    number: signal.Signals, status: int, last: str, agent: Path, games: Path, tmp_path: Path
):
    command = [preloaded.python(), "-m", "gigpo_mega.train", str(CONFIG), "--model.path", str(agent),
               "--environment.tasks.data", str(games), "--output", str(tmp_path)]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, env=variables(**COLD_ENGINES), text=True,
                          stderr=subprocess.PIPE) as run:  # fmt: skip
        wait_for((tmp_path / "sglang.log").exists)
        time.sleep(1)
        run.send_signal(number)
        start = time.monotonic()
        _, said = run.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert (run.returncode, said.splitlines()[-1]) == (status, last)
    assert alive(str(tmp_path)) == []


@pytest.mark.parametrize("program", ["train", "evaluate", "coldstart"])
def test_an_output_that_cannot_be_made_is_refused_at_once(
    program: str, agent: Path, games: Path, tmp_path: Path
):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/nowhere/run")):
        done = run_python(
            "-m", f"gigpo_mega.{program}", str(CONFIG), "--model.path", str(agent), "--coldstart.games", "2",
            "--environment.tasks.data", str(games), "--output", str(output),
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"error: output: {output} cannot be made, ")


@pytest.mark.engine
def test_engine_that_never_becomes_healthy_leaves_no_process(agent: Path, games: Path, tmp_path: Path):
    line = complaint("--model.path", str(agent), "--environment.tasks.data", str(games),
                     "--output", str(tmp_path), "--engine.startup_timeout", "2")
    assert "engine.startup_timeout" in line
    assert alive(str(agent)) == []
