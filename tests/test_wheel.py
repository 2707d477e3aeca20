"""The wheel and the sdist: from the wheel alone, in a folder full of traps, every command works."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gigpo_mega.config import recipes
from gigpo_mega.program import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"
TINY = (
    *("--rollout.groups", "1", "--rollout.group_size", "2", "--environment.max_steps", "2"),
    *("--environment.tasks.task_types", "[pick_and_place_simple]", "--evaluation.episodes", "1"),
    "--environment.tasks.generate={games: {train: 2, valid_unseen: 1}, seed: 3, receptacles: 4, objects: 3}",
    *("--environment.tasks.data", "games", "--iterations", "1"),
)


def build(kind: str, tree: Path, output: Path) -> Path:
    """The wheel or sdist of `tree`, as `pip wheel` makes it without build isolation."""
    done = subprocess.run([sys.executable, "-c", BUILD.format(kind), str(output)], cwd=tree, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = output.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's files, as building writes beside them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("tree")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, which sees our dependencies but not this checkout."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    places = {name: sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text("\n".join(dict.fromkeys(places.values())) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "-qq", "--disable-pip-version-check", str(wheel)], check=True)
    return folder / "bin"


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """A working directory with modules and configurations that are called as ours are."""
    for name in ("envs", "kernels", "gigpo_mega", "tools", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the working directory')\n")
    (tmp_path / "configs" / "alfworld").mkdir(parents=True)
    for name in ("quickstart", "alfworld/qwen2.5-7b"):
        (tmp_path / "configs" / f"{name}.yaml").write_text("trap: 1\n")
    return tmp_path


def run(programs: Path, folder: Path, *arguments: str, status: int = 0) -> str:
    """Everything that `gigpo-mega ARGUMENTS...` prints in `folder`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([programs / "gigpo-mega", *arguments], cwd=folder, env=environment, text=True,
                          capture_output=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout + done.stderr


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as file:
        return {name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()}


def test_the_sdist_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", tree, tmp_path)
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert contents(build("wheel", unpacked, tmp_path)) == contents(wheel)
    kept = {path.name for path in unpacked.iterdir()}
    folders = {"tests", "tools", "docs", "configs", "requirements"}
    assert folders | {"Makefile", "mkdocs.yml", "SECURITY.md"} <= kept


def test_the_wheel_holds_our_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    names = set(contents(wheel))
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"envs", "gigpo_mega", "kernels"}
    expected = {f"gigpo_mega/recipes/{path.relative_to(ROOT / 'configs')}"
                for path in (ROOT / "configs").rglob("*") if path.is_file()}  # fmt: skip
    assert {name for name in names if name.startswith("gigpo_mega/recipes/")} == expected
    assert {"gigpo_mega/telemetry/report/report.css", "gigpo_mega/commands/starter/NAME.py"} <= names


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, programs: Path, traps: Path) -> None:
    assert f"gigpo-mega {command}" in run(programs, traps, command, "--help")


def test_a_recipe_is_planned_by_name(programs: Path, traps: Path) -> None:
    assert "7.62 B parameters" in run(programs, traps, "plan", "alfworld/qwen2.5-7b", "--gpu", "h100")


def test_a_path_is_a_file_of_the_working_directory(programs: Path, traps: Path) -> None:
    said = run(programs, traps, "train", "configs/quickstart.yaml", "--dry-run", status=2)
    assert said.startswith("error: unknown key trap (configs/quickstart.yaml)")
    said = run(programs, traps, "train", "configs/search/small.yaml", "--dry-run", status=2)
    assert "for the recipe of the package write search/small" in said


def test_the_shipped_policy_is_converted(programs: Path, traps: Path) -> None:
    policy = next(programs.parent.glob("lib/python*/site-packages")) / "gigpo_mega/recipes/quickstart_policy"
    run(programs, traps, "convert", "import", "--hf", str(policy), "--out", "checkpoint")
    assert sum(path.stat().st_size for path in (traps / "checkpoint").rglob("*")) > 1_600_000  # bytes


def test_the_kernels_are_measured(programs: Path, traps: Path) -> None:
    run(programs, traps, "bench-kernels", "--op", "advantage", "--quick", "--output", "bench")
    assert json.loads((traps / "bench/kernels_cpu.json").read_text())["commit"] == "unknown"


def test_a_policy_of_the_installation_is_not_replaced(programs: Path, traps: Path) -> None:
    said = run(programs, traps, "quickstart", "--coldstart", status=2)
    assert "`gigpo-mega coldstart quickstart quickstart_coldstart` makes one of your own" in said


@pytest.mark.engine
def test_the_quickstart_trains_and_its_panel_is_played_again(programs: Path, traps: Path) -> None:
    said = run(programs, traps, "quickstart", *TINY)
    assert "held-out panel, 1 games" in said
    assert "[1/1] success" in said
    assert (traps / "runs/latest").resolve() == traps / "runs/quickstart"
    output = traps / "runs/quickstart"
    (output / "report.html").unlink()
    assert run(programs, traps, "report", "runs/quickstart") == "runs/quickstart/report.html\n"
    assert (output / "report.html").stat().st_size > 10_000
    run(programs, traps, "evaluate", "quickstart", *TINY, "--output", "runs/again")
    assert json.loads((traps / "runs/again/evaluation.json").read_text())["episodes"] == 1
    said = run(programs, traps, "train", "quickstart", *TINY, "--dry-run", "--output", "runs/dry")
    assert "recipes/quickstart_policy: qwen2, 0.40 M parameters" in said


def test_recipes_of_a_checkout_are_its_configs() -> None:
    assert (recipes.FOLDER, recipes.INSTALLED) == (ROOT / "configs", False)
    assert len(recipes.names()) == len(list((ROOT / "configs").rglob("*.yaml")))


def test_the_page_installs_the_pinned_versions() -> None:
    pins = (ROOT / "requirements/sglang.txt").read_text().split()
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if "--no-deps sglang" in line)
    assert {word for word in line.split() if "==" in word} <= set(pins)


def test_the_cpu_extra_has_all_that_sglang_requires_and_the_cpu_set_pins() -> None:
    def names(lines: list[str]) -> set[str]:
        needs = [Requirement(line) for line in lines]
        now = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        return {canonicalize_name(need.name) for need in now}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = (ROOT / "requirements/cpu.txt").read_text().splitlines()
    wanted = names(metadata.requires("sglang") or []) & names([line for line in listed if line[0] != "#"])
    assert wanted - names(project["dependencies"]) - names(project["optional-dependencies"]["cpu"]) == set()
