"""What a module of gigpo_mega.weights loads, and that each can be the first one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(program: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def loaded(module: str) -> set[str]:
    """The packages that are loaded after `module` is."""
    done = run(f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["weights", "weights.families.mapping", "weights.huggingface"])
def test_a_module_that_needs_no_megatron_loads_none(module: str) -> None:
    """The package used to prepare megatron, whatever of it was asked for."""
    assert "megatron" not in loaded(f"gigpo_mega.{module}")


def test_the_package_itself_loads_nothing_heavy() -> None:
    assert not loaded("gigpo_mega.weights") & {"torch", "megatron", "transformers", "sglang", "numpy"}


# Children of a process that has imported what comes before megatron, seconds of CPU for each.
FIRST = """
import importlib, os, sys
import torch._dynamo, transformers
from gigpo_mega.cpu import megatron
install = megatron.install
def check():
    assert 'megatron' not in sys.modules
    install()
megatron.install = check
for module in {modules}:
    if (child := os.fork()) == 0:
        importlib.import_module('gigpo_mega.weights.' + module)
        assert 'megatron' in sys.modules, module
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""


def test_whichever_module_is_first_megatron_is_prepared_before_it_is_loaded() -> None:
    done = run(FIRST.format(modules=["live", "sharded", "adapter", "convert", "verify"]))
    assert done.returncode == 0, done.stderr
