"""What stands in for GPU packages: for absent ones, and for those here that need a driver to be loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(program: str, packages: Path) -> str:
    """What a program prints that finds `packages` before any other."""
    path = os.pathsep.join([str(packages), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=packages, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_kernels_that_cannot_be_loaded_count_as_absent(tmp_path: Path) -> None:
    """As those of a CUDA installation on a machine without a driver, e.g. a login node."""
    package = tmp_path / "sgl_kernel"
    package.mkdir()
    (package / "__init__.py").write_text("from sgl_kernel import part\nraise ImportError('libcuda.so.1')\n")
    (package / "part.py").touch()
    (package / "scalar_type.py").touch()
    said = run(
        "from gigpo_mega.cpu import stubs\n"
        "assert stubs.install()\n"
        "import sgl_kernel\n"
        "try:\n    sgl_kernel.part.call()\n"
        "except NotImplementedError as error:\n    print(error)\n"
        "try:\n    import sgl_kernel.scalar_type\n"
        "except ImportError:\n    print('absent')\n",
        tmp_path,
    )
    assert said == "sgl_kernel.call is not on this CPU-only host\nabsent\n"


def test_kernels_that_can_be_loaded_are_used(tmp_path: Path) -> None:
    (tmp_path / "sgl_kernel.py").write_text("def call():\n    return 'real'\n")
    said = run(
        "from gigpo_mega.cpu import stubs\nstubs.install()\nimport sgl_kernel\nprint(sgl_kernel.call())\n",
        tmp_path,
    )
    assert said == "real\n"


def test_megatron_does_without_a_flash_mla_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "flash_mla.py").write_text("raise OSError('libcuda.so.1')\n")
    said = run(
        "import gigpo_mega.learner\nfrom megatron.core.transformer import attention\n"
        "print(attention.flash_mla_with_kvcache)\n",
        tmp_path,
    )
    assert said == "None\n"


@pytest.mark.skipif(find_spec("IPython") is not None, reason="IPython itself is installed")
def test_figures_are_drawn_beside_the_stand_in_of_ipython(tmp_path: Path) -> None:
    """matplotlib looks for the shell of an IPython that was imported, as sglang does."""
    said = run(
        "from gigpo_mega.cpu import stubs\nstubs.install()\nimport IPython\n"
        "import matplotlib.pyplot as plt\nplt.subplots()\nprint(plt.get_fignums(), IPython.version_info)\n",
        tmp_path,
    )
    assert said == "[1] (99, 0)\n"
