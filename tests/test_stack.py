"""The decision between CUDA and CPU on the machines that users have, and what follows from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from gigpo_mega import stack
from gigpo_mega.errors import UserError
from gigpo_mega.stack import Machine, Stack, decide

ROOT = Path(__file__).parents[1]


@dataclass
class FakeMachine(Machine):
    """A machine with these facts; asking its driver is recorded, as that cannot be undone."""

    hidden: bool = False
    driver: bool = True
    amd: bool = False
    torch: str | None = "13.0"
    kernels: bool = True
    supported: tuple[int, int] = (13, 0)
    gpus: int = 8
    asked: bool = False

    def hides_gpus(self) -> bool:
        return self.hidden

    def has_driver(self) -> bool:
        return self.driver

    def has_amd_gpu(self) -> bool:
        return self.amd

    def torch_cuda(self) -> str | None:
        return self.torch

    def has_kernels(self) -> bool:
        return self.kernels

    def ask_driver(self) -> tuple[tuple[int, int], int]:
        self.asked = True
        return self.supported, self.gpus


LAPTOP = {"driver": False, "torch": None, "kernels": False}
WORKSTATION = {
    "torch": "13.0",
    "kernels": False,
}  # PyPI's torch is a CUDA build, sglang came without its needs
CASES = {
    "a laptop": (LAPTOP, "there is no NVIDIA driver (libcuda.so.1)"),
    "a laptop with PyPI's torch": ({**LAPTOP, "torch": "13.0"}, "there is no NVIDIA driver (libcuda.so.1)"),
    "a workstation": (WORKSTATION, "there is an NVIDIA driver, but not SGLang's sgl_kernel package"),
    "a workstation with a CPU wheel": (
        {**WORKSTATION, "torch": None},
        "there is an NVIDIA driver, but torch is a CPU build",
    ),
    "an AMD GPU": (
        {**LAPTOP, "amd": True},
        "there is no NVIDIA driver (libcuda.so.1), and AMD GPUs are not supported",
    ),
    "hidden GPUs": ({"hidden": True}, "CUDA_VISIBLE_DEVICES hides every GPU"),
    "an old driver": (
        {"supported": (12, 4)},
        "torch is built for CUDA 13.0, and the NVIDIA driver runs CUDA 12.4 at most",
    ),
    "a driver without a GPU": ({"gpus": 0}, "the NVIDIA driver shows no GPU"),
}


@pytest.mark.parametrize(("facts", "reason"), CASES.values(), ids=CASES)
def test_a_machine_that_cannot_run_cuda_takes_the_cpu_and_says_why(
    facts: dict[str, object], reason: str
) -> None:
    machine = FakeMachine(**facts)  # type: ignore[arg-type]
    taken = decide(machine=machine)
    assert taken.name == "cpu"
    assert taken.reason.startswith(reason)
    with pytest.raises(UserError) as refused:
        decide("cuda", machine=machine)
    assert str(refused.value).startswith(f"stack cuda cannot run here: {reason}")
    assert str(refused.value).endswith("; set it to cpu or auto")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_cloud_machine_takes_cuda(wanted: Literal["auto", "cuda"]) -> None:
    assert decide(wanted, machine=FakeMachine()) == Stack("cuda", "8 GPU(s), torch for CUDA 13.0", 8)
    newer = FakeMachine(supported=(13, 2), gpus=1)
    assert decide(wanted, machine=newer) == Stack("cuda", "1 GPU(s), torch for CUDA 13.0", 1)


def test_a_learner_whose_engine_runs_elsewhere_needs_no_sglang_kernels() -> None:
    assert decide(engine=False, machine=FakeMachine(kernels=False)).cuda
    assert not decide(engine=True, machine=FakeMachine(kernels=False)).cuda


def test_the_cpu_can_be_forced_and_the_driver_is_asked_only_if_nothing_else_decides() -> None:
    """An initialized driver has read CUDA_VISIBLE_DEVICES: hiding the GPUs afterwards changes nothing."""
    machine = FakeMachine()
    assert decide("cpu", machine=machine) == Stack("cpu", "as the option stack says")
    assert not machine.asked
    for facts in (WORKSTATION, {"torch": None}, {"hidden": True}, {"driver": False}):
        machine = FakeMachine(**facts)  # type: ignore[arg-type]
        decide(machine=machine)
        assert not machine.asked


@pytest.mark.parametrize(("visible", "hidden"), [("", True), ("-1", True), ("0,1", False), (None, False)])
def test_gpus_are_hidden_by_an_empty_list(
    visible: str | None, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Machine().hides_gpus() is hidden


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "13.0"),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", None),
        ("__version__ = '2.13.0+rocm7.0'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.0'\n", None),
        ('__version__ = "2.9.0"\ncuda = "12.8"\n', "12.8"),
    ],
)
def test_the_build_of_torch_is_read_without_importing_it(
    text: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "torch" / "version.py").write_text(text)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path)
    assert Machine().torch_cuda() == expected


def test_the_build_of_the_installed_torch_is_the_one_it_reports() -> None:
    import torch

    assert Machine().torch_cuda() == torch.version.cuda


FAKE_DRIVER = """
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = 4; return 0; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("status", "said"),
    [(0, "((13, 2), 4)"), (100, "UserError('the NVIDIA driver does not work: cuInit answers 100')")],
)
def test_a_driver_answers_with_its_version_and_its_gpus(status: int, said: str, tmp_path: Path) -> None:
    source = tmp_path / "cuda.c"
    source.write_text(FAKE_DRIVER.replace("STATUS", str(status)))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
    probe = (
        "from gigpo_mega.stack import Machine\n"
        "assert Machine().has_driver()\n"
        "try:\n    print(Machine().ask_driver())\n"
        "except Exception as error:\n    print(repr(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.strip() == said


def test_a_driver_without_its_functions_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack.ctypes, "CDLL", lambda name: object())
    with pytest.raises(UserError, match=r"the NVIDIA driver cannot be used: .*cuInit"):
        Machine().ask_driver()


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_the_leader_says_what_was_taken_and_the_gpus_are_hidden(
    rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert not stack.enter("cpu", engine=True).cuda
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert capsys.readouterr().err == "stack: cpu, as the option stack says\n" * lines


def test_a_cuda_stack_hides_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stack, "Machine", FakeMachine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert stack.enter("auto", engine=True).cuda
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert capsys.readouterr().err == "stack: cuda, 8 GPU(s), torch for CUDA 13.0\n"
