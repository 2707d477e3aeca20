"""What is checked before an installation, and what the lock of the CUDA packages and the Dockerfile hold."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.version import Version

from tools.check_setup import CUDA, GLIBC, has_nvcc, machine_problems, problems
from tools.lock_gpu import GLIBC as LOCK_GLIBC
from tools.lock_gpu import PYTHON, entries, supported

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+) \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")
# Imported in `envs` and `gigpo_mega`, and installed for an extra or with Transformer Engine only.
OPTIONAL = {
    *("alfworld", "en_core_web_lg", "flash_mla", "openenv", "ray", "scienceworld", "skyrl_gym", "textworld"),
    *("transformer_engine", "verl", "wandb", "mlflow"),
}


def lock(name: str = "gpu") -> dict[str, Version]:
    """Versions by name; asserts that every line is a pin or its hash."""
    pins: dict[str, Version] = {}
    for line in (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()[1:]:
        if found := PIN.match(line):
            pins[found[1]] = Version(found[2])
        else:
            assert HASH.match(line), line
    return pins


def report(torch: str, *others: tuple[str, str], needs: tuple[str, ...] = ()) -> dict[str, Any]:
    packages = [("torch", torch), *others]
    return {"install": [{"metadata": {"name": name, "version": version, "requires_dist": list(needs)}}
                        for name, version in packages]}  # fmt: skip


def test_check_setup_accepts_a_complete_cuda_torch() -> None:
    needs = ("nvidia-cublas<14", "triton==3.7.1; python_version > '3'", "absent; extra == 'x'")
    found = report("2.13.0", ("triton", "3.7.1"), ("nvidia-cublas", "13.1"), needs=needs)
    assert problems(found) == []


def test_check_setup_sees_what_is_missing() -> None:
    assert problems({"install": []}) == ["torch is not installed at all"]
    wrong = problems(report("2.13.0+cpu", ("triton", "3.6.0"), needs=("nvidia-cublas<14",)))
    assert wrong == [
        "torch requires nvidia-cublas<14, which the set-up does not bring",
        "torch 2.13.0+cpu is a local build, so this proves nothing",
        "no nvidia package came with torch",
        "triton is 3.6.0, not 3.7.1",
    ]


GOOD = ((3, 12), "x86_64", (2, 34), 100.0, (13, 0), True)


@pytest.mark.parametrize(("place", "value", "said"), [
    (0, (3, 11), "Python is 3.11, gpu.lock is for 3.12"),
    (1, "aarch64", "the processor is aarch64, gpu.lock is for x86_64"),
    (2, (2, 31), "glibc is 2.31, SGLang's kernels need 2.34"),
    (3, 12.4, "12 GiB are free here"),
    (4, (12, 8), "the NVIDIA driver runs CUDA 12.8 at most, the packages are built for 13.0; "),
    (5, False, "there is no nvcc, with which SGLang compiles kernels when it first runs; install"),
])  # fmt: skip
def test_a_machine_that_cannot_have_the_lock_is_told_why(place: int, value: Any, said: str) -> None:
    facts: list[Any] = [*GOOD]
    facts[place] = value
    (line,) = machine_problems(*facts)
    assert line.startswith(said)


def test_a_machine_that_can_have_the_lock_needs_no_driver_yet() -> None:
    assert list(machine_problems(*GOOD)) == []
    assert list(machine_problems(*GOOD[:4], None, False)) == []  # an image is built without one


def test_nvcc_is_looked_for_where_sglang_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(nvcc.parent))
    assert has_nvcc()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))  # counts first, right or wrong
    assert not has_nvcc()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert has_nvcc()


def test_the_machine_check_runs_with_the_standard_library_alone() -> None:
    """Before the installation there is nothing else."""
    command = [sys.executable, "-S", "-m", "tools.check_setup", "--gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={})
    assert done.stderr == ""
    assert "gpu.lock" in done.stdout


def test_the_lock_is_closed() -> None:
    """Every package has what it requires; sglang's `kernels` is left out, as its name is ours."""
    pins = lock() | lock("gpu-extras")
    assert lock().keys().isdisjoint(lock("gpu-extras"))
    assert "kernels" not in pins
    (wanted,) = (r for r in map(Requirement, metadata.requires("sglang") or []) if r.name == "torch")
    assert wanted.specifier.contains(pins["torch"])
    missing: set[str] = set()
    for text in metadata.requires("sglang") or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": "", "python_version": "3.12"}):
            name = re.sub(r"[-_.]+", "-", need.name).lower()
            if name not in pins or not need.specifier.contains(pins[name], prereleases=True):
                missing.add(name)
    assert missing == {"kernels"}


def test_the_lock_pins_what_its_input_and_the_cpu_set_ask_for() -> None:
    pins = lock() | lock("gpu-extras")
    for name in ("gpu.in", "gpu-extras.in", "sglang.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            if line and not line.startswith("#"):
                need = Requirement(line)
                assert need.specifier.contains(pins[re.sub(r"[-_.]+", "-", need.name).lower()]), line


def imported(folder: str) -> set[str]:
    """Top-level names that the modules in `folder` import, anywhere in them."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        if path.parent.name == "starter":  # templates
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("folder", ["envs", "gigpo_mega", "kernels"])
def test_the_lock_brings_what_the_packages_import(folder: str) -> None:
    owners = {**metadata.packages_distributions(), "sgl_kernel": ["sglang-kernel"]}
    third_party = imported(folder) - sys.stdlib_module_names - {"envs", "gigpo_mega", "kernels"} - OPTIONAL
    pins = lock()
    absent = {
        name
        for name in third_party
        if not any(re.sub(r"[-_.]+", "-", owner).lower() in pins for owner in (*owners.get(name, ()), name))
    }
    assert absent == set()


def test_hashes_are_those_of_wheels_that_the_machine_can_install() -> None:
    def wheel(name: str, digest: str) -> dict[str, Any]:
        return {"url": f"somewhere/{name}", "hashes": {"sha256": digest}}

    packages = {
        "b": {"version": "1.0", "sdist": {"hashes": {"sha256": "source"}},
              "wheels": [wheel("b-1.0-cp312-cp312-win_amd64.whl", "windows")]},
        "A_a": {"version": "2.0", "wheels": [
            wheel("A_a-2.0-cp312-cp312-manylinux_2_34_x86_64.whl", "fits"),
            wheel("A_a-2.0-cp312-cp312-manylinux_2_35_x86_64.whl", "too new"),
            wheel("A_a-2.0-cp311-cp311-manylinux_2_34_x86_64.whl", "other Python"),
            wheel("A_a-2.0-cp39-abi3-manylinux2014_x86_64.whl", "stable ABI"),
            wheel("A_a-2.0-py3-none-any.whl", "pure")]},
    }  # fmt: skip
    text = "".join(entries(packages, supported()))
    fits = "".join(f" \\\n    --hash=sha256:{digest}" for digest in ("fits", "stable ABI", "pure"))
    assert text == f"a-a==2.0{fits}\nb==1.0 \\\n    --hash=sha256:source\n"
    assert Tag("cp312", "cp312", "manylinux_2_35_x86_64") not in supported()


def test_check_and_lock_are_for_the_same_machine() -> None:
    assert (GLIBC, PYTHON) == ((2, LOCK_GLIBC), (3, 12))
    assert str(lock()["nvidia-cuda-runtime"]).startswith("{}.{}".format(*CUDA))
    head = (ROOT / "requirements" / "gpu.lock").read_text().splitlines()[0]
    assert f"Python 3.12, x86-64, glibc >= 2.{LOCK_GLIBC}" in head


@pytest.mark.parametrize("name", ["Dockerfile", "requirements/gpu.in", "requirements/gpu.lock"])
def test_no_index_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(
        r"index-url|find-links|https?://(?!github\.com/NVIDIA/apex)", text.replace("git+", "")
    )


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_the_image_runs_as_a_user_and_is_built_by_make() -> None:
    steps = dockerfile()
    assert dict(steps)["FROM"].startswith("nvidia/cuda:${CUDA}-")
    assert ("ARG", f"CUDA={CUDA[0]}.{CUDA[1]}.1") in steps
    assert "devel" in dict(steps)["FROM"]  # SGLang compiles kernels when it runs
    assert [arguments for name, arguments in steps if name == "USER"] == ["$UID"]
    user = steps.index(("USER", "$UID"))
    assert all(name != "RUN" or "apt-get" in a or "useradd" in a for name, a in steps[:user])
    runs = [arguments for name, arguments in steps[user:] if name == "RUN"]
    assert runs[0].startswith("make setup-gpu ")
    assert "make setup-te" in runs[1]
    made = subprocess.run(["make", "-n", "setup-te"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tools.check_setup --gpu" in made.stdout
    assert "requirements/gpu-extras.lock" in made.stdout


def test_make_setup_keeps_to_the_packages_that_are_installed(tmp_path: Path) -> None:
    """After setup-gpu, what depends on setup must not put the CPU's packages over those of CUDA."""
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")

    def planned(*targets: str) -> str:
        command = ["make", "-n", *targets]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "requirements/cpu.txt" in planned("quickstart")
    assert "gpu.lock" not in planned("quickstart")
    (tmp_path / ".venv").mkdir()
    for stamp in (".gpu", ".python"):
        (tmp_path / ".venv" / stamp).touch()
    assert "--require-hashes -r requirements/gpu.lock" in planned("quickstart")
    assert "requirements/cpu.txt" not in planned("quickstart")
    (tmp_path / ".venv" / ".gpu").unlink()
    command = ["make", "--no-print-directory", "setup-gpu"]  # which a make around the tests would print
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert (
        refused.stdout.strip()
        == "setup-gpu needs an empty .venv, and this one has the CPU packages: rm -r .venv"
    )
