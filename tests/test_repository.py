"""The repository: what is installed, what may lie in the tree, and that our names break no one else."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = {".py", ".md", ".toml", ".yaml", ".txt", ".json", ".css", ""}
BROKEN_FOR_TRANSFORMERS = (Version("0.17"), Version("0.18"))


def run(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program away from the tree, so that only what is installed can be imported."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", program], cwd=folder, env=variables, capture_output=True,
                          text=True, timeout=300, check=False)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def sources() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def pins(name: str) -> Iterator[Requirement]:
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


def test_our_packages_are_installed(tmp_path: Path):
    done = run("import envs, gigpo_mega, kernels\n"
               "print(*(module.__path__[0] for module in (envs, gigpo_mega, kernels)))", tmp_path)
    expected = [str(ROOT / name) for name in ("envs", "gigpo_mega", "kernels")]
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.engine
def test_transformers_then_megatron_and_sglang_work_beside_our_kernels(tmp_path: Path):
    done = run("import kernels, torch\n"
               "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
               "shape = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1)\n"
               "heads = dict(num_attention_heads=2, num_key_value_heads=1)\n"
               "model = Qwen2ForCausalLM(Qwen2Config(**shape, **heads, vocab_size=11))\n"
               "print(*model(torch.tensor([[1, 2, 3]])).logits.shape)\n"
               "from gigpo_mega.cpu import megatron, stubs\n"
               "megatron.install()\n"
               "stubs.install()\n"
               "from megatron.core.models.gpt import GPTModel\n"
               "from megatron.core.transformer import TransformerConfig\n"
               "from sglang.srt.managers.scheduler import Scheduler\n"
               "from sglang.srt.models.qwen2 import Qwen2ForCausalLM\n"
               "config = TransformerConfig(num_layers=2, hidden_size=8, num_attention_heads=2)\n"
               "print(GPTModel.__name__, Scheduler.__name__, config.kv_channels)", tmp_path)
    assert done.stdout.split()[:3] == ["1", "3", "11"], done.stderr
    assert done.stdout.split()[-3:] == ["GPTModel", "Scheduler", "4"], done.stderr


def test_version_stays_out_of_the_range_that_breaks_transformers():
    low, high = BROKEN_FOR_TRANSFORMERS
    assert metadata.version(PROJECT["name"]) == PROJECT["version"]
    assert not low <= Version(PROJECT["version"]) < high


def test_transformers_takes_our_kernels_for_the_hub_package(tmp_path: Path):
    """Why the version matters: a distribution of ours in the range makes Qwen2 unimportable."""
    info = tmp_path / "gigpo_mega-0.17.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gigpo-mega\nVersion: 0.17.0\n")
    (info / "top_level.txt").write_text("kernels\n")
    done = run("import transformers.models.qwen2.modeling_qwen2", tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "from 'kernels'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["torch", "cpu", "sglang", "dev"])
def test_installed_versions_are_the_pinned_ones(name: str):
    wrong = [f"{pin} but {metadata.version(pin.name)} is installed" for pin in pins(name)
             if not pin.specifier.contains(metadata.version(pin.name), prereleases=True)]
    assert wrong == []


def test_pinned_set_is_consistent():
    """What `pip check` says, but for those that are installed without their dependencies on purpose."""
    wrong: list[str] = []
    for pin in [*pins("torch"), *pins("cpu"), *pins("dev")]:
        for text in metadata.requires(pin.name) or []:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            try:
                fits = need.specifier.contains(metadata.version(need.name), prereleases=True)
            except metadata.PackageNotFoundError:
                fits = False
            if not fits:
                wrong.append(f"{pin.name} requires {need}")
    assert wrong == []


def test_exceptions_of_import_rules_name_modules_that_exist():
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    lines = {line for rule in rules for line in rule.get("ignore_imports", [])}
    names = {line.partition(" ->")[0].removesuffix(".**").replace(".", "/") for line in lines}
    assert [n for n in names if not ((ROOT / n).is_dir() or (ROOT / f"{n}.py").is_file())] == []


def test_an_import_of_ray_breaks_a_rule(tmp_path: Path):
    for name in ("gigpo_mega", "envs", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / name / "new.py").write_text("import ray\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=tmp_path, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True, check=False)
    assert done.returncode == 1
    broken = re.findall(r"(\w+)\.new -> ray \(l\.1\)", done.stdout)
    assert sorted(broken) == ["envs", "gigpo_mega", "kernels"]


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"
    plan = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(tool in plan for tool in ("ruff check", "pyright", "lint-imports", "-m pytest"))


def test_tree_names_no_machine():
    """Paths, hosts and home folders of whoever wrote a file are of no use to its reader."""
    personal = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|tmp|opt|Users)/")
    texts = [path for path in tracked() if path.suffix in TEXTS and path != Path(__file__)]
    named = [f"{path.relative_to(ROOT)}: {found.group()}" for path in texts
             for found in [personal.search(path.read_text(encoding="utf-8", errors="replace"))] if found]
    assert named == []


def test_files_are_small_enough_to_read():
    long = {str(path.relative_to(ROOT)): count for path in sources()
            if (count := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_functions_are_small_enough_to_read():
    long = [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}" for path in sources()
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno is not None and node.end_lineno - node.lineno >= 60]
    assert long == []


def test_every_module_says_what_it_is():
    texts = {str(path): path.read_text() for path in sources() if ROOT / "tests" not in path.parents}
    silent = [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [str(path) for path in sources() if marks.search(path.read_text())]
    assert [path for path in found if path != __file__] == []


def test_license_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert PROJECT["license"] == "Apache-2.0"
