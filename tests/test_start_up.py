"""What programs load before they have read their options, and what is refused before anything runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gigpo_mega.program import COMMANDS
from tools.codebase_stats import HEAVY, TOOLS

ROOT = Path(__file__).parents[1]
MODULES = ("gigpo_mega.train", "gigpo_mega.evaluate", "gigpo_mega.coldstart", "gigpo_mega.quickstart")
# Programs of people besides those at the top of tools/, `python -m NAME`.
OTHER_TOOLS = ("tools.gpu", "tools.launch.ray_job", "envs.alfworld.generate", "envs.webshop.generate",
               "envs.search.server", "envs.search.offline")  # fmt: skip
PROGRAMS = [f"tools.{path.stem}" for path in TOOLS] + list(OTHER_TOOLS)
# Does `python -m NAME ARGUMENTS...`, writes at the end its status and which heavy packages it has imported.
PROBE = f"""
import json, os, runpy, sys
def probe(arguments):
    sys.argv, status = arguments, 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        status = exit.code or 0
    sys.stdout.flush()
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    sys.stderr.write("PROBE " + json.dumps([status, heavy]))
"""
ONE = PROBE + "probe(sys.argv[1:])"
# Each in a fork of a process that has imported what most of them do, half a second of CPU for each.
MANY = PROBE + """
import gigpo_mega.config.load
for arguments in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        probe(arguments)
        os._exit(0)
    os.close(writer)
    with open(reader) as output:
        print(json.dumps(output.read()), flush=True)
    os.wait()
"""
Probed = tuple[int, list[str], str]  # status, heavy packages imported, output


def run_probe(program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def parsed(output: str) -> Probed:
    said, _, found = output.partition("PROBE ")
    status, heavy = json.loads(found)
    return status, heavy, said


def probed(*arguments: str, cwd: Path = ROOT) -> Probed:
    """What became of `python -m ARGUMENTS...`."""
    done = run_probe(ONE, *arguments, cwd=cwd)
    return parsed(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def helps() -> dict[str, Probed]:
    """What became of `--help` of every program."""
    names = [*(f"gigpo_mega {command}" for command in COMMANDS), *MODULES, *PROGRAMS]
    done = run_probe(MANY, json.dumps([[*name.split(), "--help"] for name in names]), cwd=ROOT)
    outputs = map(json.loads, done.stdout.splitlines())
    return {name: parsed(output) for name, output in zip(names, outputs, strict=True)}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(command: str, helps: dict[str, Probed]) -> None:
    status, heavy, said = helps[f"gigpo_mega {command}"]
    assert (status, heavy) == (0, [])
    assert f"gigpo-mega {command}" in said


@pytest.mark.parametrize("module", MODULES)
def test_help_of_a_module_loads_nothing_heavy(module: str, helps: dict[str, Probed]) -> None:
    status, heavy, said = helps[module]
    assert (status, heavy) == (0, [])
    assert "--advantage.gamma" in said


@pytest.mark.parametrize("tool", PROGRAMS)
def test_help_of_a_tool_loads_nothing_heavy(tool: str, helps: dict[str, Probed]) -> None:
    status, heavy, said = helps[tool]
    assert (status, heavy) == (0, [])
    assert said.startswith("usage: ")


@pytest.mark.parametrize("program", [["gigpo_mega", "train"], ["gigpo_mega.train"], ["gigpo_mega", "plan"]])
def test_a_mistyped_flag_loads_nothing_heavy(program: list[str]) -> None:
    status, heavy, said = probed(*program, "configs/quickstart.yaml", "--advantage.gama", "0.9")
    assert (status, heavy) == (2, [])
    assert said.startswith("error: unknown key advantage.gama (command line); did you mean advantage.gamma")


def test_a_plan_loads_nothing_heavy() -> None:
    status, heavy, said = probed("gigpo_mega", "plan", "configs/alfworld/qwen2.5-7b.yaml", "--gpu", "h200")
    assert heavy == []
    assert status == 0, said


def test_a_dry_run_checks_loads_tasks_and_starts_nothing(tmp_path: Path) -> None:
    games, output = tmp_path / "games", tmp_path / "run"
    status, heavy, said = probed(
        "gigpo_mega", "train", "tests/tiny.yaml", "--dry-run", "--model.path", "configs/quickstart_policy",
        "--environment.tasks.data", str(games), "--output", str(output), "--rollout.max_staleness", "1",
        "--objective.old_logprob", "engine", "--rollout.workers", "2", "--rollout.pool", "ray",
        "--engine.placement", "separate", "--engine.replicas", "3", "--weights.transport", "disk",
    )  # fmt: skip
    assert (status, heavy) == (0, [])
    played = r"2 workers, actors of Ray with 1 environment process\(es\), 8 episodes at once"
    assert re.search(rf"^rollout +{played}, 1 iteration\(s\) ahead of the learner$", said, re.M)
    assert "3 SGLang server(s) in the Ray cluster, started by the run" in said
    assert f"8 of alfworld (train); panel of 4 episodes on 4 tasks (valid_unseen), made in {games}\n" in said
    assert "2 tasks x 4 episodes of <= 5 steps; advantage gigpo; 20 rows per update" in said
    assert games.is_dir()
    assert not output.exists()


def test_a_dry_run_refuses_what_the_run_would() -> None:
    status, heavy, said = probed("gigpo_mega", "train", "--dry-run", "--model.path", "nowhere")
    assert (status, heavy) == (2, [])
    assert said.startswith("error: model.path: nowhere/config.json does not exist;")


def test_a_dry_run_refuses_an_output_that_the_run_would(tmp_path: Path) -> None:
    command = [
        "gigpo_mega", "train", "tests/tiny.yaml", "--dry-run", "--model.path", "configs/quickstart_policy",
        "--environment.tasks.data", str(tmp_path / "games"), "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    status, _, said = probed(*command, "--resume")
    assert status == 2
    assert "holds no run to resume" in said
    assert "iterations, resumed" not in probed(*command, "--resume", "auto")[2]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    status, _, said = probed(*command)
    assert status == 2
    assert "holds a run already; choose another output or --resume" in said
    assert "iterations, resumed" in probed(*command, "--resume", "auto")[2]


def test_unknown_commands_name_the_likeliest() -> None:
    assert probed("gigpo_mega", "trian")[::2] == (2, "error: unknown command 'trian'; did you mean train?\n")


def test_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert probed("gigpo_mega", "--version")[::2] == (0, f"gigpo-mega {version('gigpo-mega')}\n")


@pytest.mark.parametrize("name", ["envs", "kernels"])
@pytest.mark.parametrize("kind", ["module", "package"])
def test_a_shadowed_package_is_one_line_with_its_path(name: str, kind: str, tmp_path: Path) -> None:
    shadow = tmp_path / (f"{name}.py" if kind == "module" else f"{name}/__init__.py")
    shadow.parent.mkdir(exist_ok=True)
    shadow.write_text("")
    if kind == "package":
        (shadow.parent / "base.py").write_text("")
    command = [sys.executable, "-m", "gigpo_mega.train", "--help"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{shadow} is imported by that name" in done.stderr


def test_a_folder_of_another_kind_does_not_shadow(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()  # no package: a namespace comes after ours
    assert probed("gigpo_mega.train", "--help", cwd=tmp_path)[0] == 0


def test_a_library_import_of_a_shadowed_package_is_an_import_error(tmp_path: Path) -> None:
    (tmp_path / "envs.py").write_text("")
    done = subprocess.run([sys.executable, "-c", "import gigpo_mega"], cwd=tmp_path, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: gigpo-mega needs its own package 'envs'")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["train", "--help"], ["--version"]], ids=" ".join)
def test_a_reader_that_has_left_is_no_error(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "gigpo_mega", *arguments], cwd=ROOT, stdout=writer,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_bug_keeps_its_traceback_and_says_how_to_report_it() -> None:
    program = "from gigpo_mega.program import run_main\ndef main(): raise {}('spilled')\nrun_main(main)"
    for error, bug in (("KeyError", True), ("__import__('gigpo_mega.errors').errors.UserError", False)):
        done = subprocess.run([sys.executable, "-c", program.format(error)], cwd=ROOT, capture_output=True,
                              text=True, check=False)  # fmt: skip
        said = done.stderr.splitlines()
        assert "spilled" in said[-1]
        assert ("bug-report" in said[0], "Traceback" in done.stderr, len(said) > 1) == (bug, bug, bug)


def test_another_pipe_that_breaks_is_a_bug() -> None:
    program = "from gigpo_mega.program import run_main\ndef main(): raise BrokenPipeError('of the engine')\n"
    done = subprocess.run([sys.executable, "-c", program + "run_main(main)"], cwd=ROOT, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("BrokenPipeError: of the engine\n")


# As the finder of an editable installation: after sys.path, on which the checkout is not.
EDITABLE = """
import importlib, sys
from importlib.machinery import PathFinder
class FakeEditableFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [ROOT]) if name in ("envs", "kernels", "gigpo_mega") else None
ours = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
sys.meta_path[:] = [*ours, FakeEditableFinder]
from gigpo_mega import program
program.main = lambda: print(importlib.import_module("kernels").__file__)
program.console()
"""


def test_an_editable_installation_is_not_shadowed_by_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels of the working directory')\n")
    command = [sys.executable, "-P", "-W", "ignore", "-c", f"ROOT = {str(ROOT)!r}\n{EDITABLE}"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{ROOT / 'kernels/__init__.py'}\n", done.stderr
